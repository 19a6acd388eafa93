import java.time.Duration;
import java.util.*;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.*;

/**
 * A journey through Apache's own Java client: create, by default and by first use, produce, consume, commit, resume, configure,
 * grow, delete records, delete. Usage: Journey BOOTSTRAP. With JOURNEY_TLS=TRUSTED.pem:IDENTITY.pem it goes over TLS. Prints "ok STEP" after each step; any failure is an exception.
 */
public class Journey {
    static final int COUNT = 300;
    static String bootstrap;

    /** The given settings and how to connect. */
    static Map<String, Object> connecting(Map<String, Object> options) {
        Map<String, Object> config = new HashMap<>(options);
        config.put("bootstrap.servers", bootstrap);
        String tls = System.getenv("JOURNEY_TLS");
        if (tls != null) {
            String[] stores = tls.split(":");
            config.putAll(Map.of("security.protocol", "SSL", "ssl.truststore.type", "PEM", "ssl.truststore.location", stores[0],
                "ssl.keystore.type", "PEM", "ssl.keystore.location", stores[1]));
        }
        return config;
    }

    static void ok(String step) {
        System.out.println("ok " + step);
    }

    static void check(boolean condition, String what) {
        if (!condition) throw new IllegalStateException(what);
    }

    static void produce(String topic, Map<String, Object> options) throws Exception {
        try (var producer = new KafkaProducer<>(connecting(options), new StringSerializer(), new StringSerializer())) {
            var futures = new ArrayList<java.util.concurrent.Future<RecordMetadata>>();
            for (int i = 0; i < COUNT; i++) {
                var record = new ProducerRecord<>(topic, "k" + i, "v" + i);
                record.headers().add("n", Integer.toString(i).getBytes());
                futures.add(producer.send(record));
            }
            for (var future : futures) future.get(30, TimeUnit.SECONDS);
        }
    }

    static Map<String, String> consume(String topic, String group, int wanted, Map<String, Object> options) {
        Map<String, Object> config = connecting(options);
        config.putAll(Map.of("group.id", group, "auto.offset.reset", "earliest", "enable.auto.commit", "false"));
        Map<String, String> seen = new HashMap<>();
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(topic));
            int count = 0;
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(40);
            while (count < wanted && System.nanoTime() < deadline) {
                for (var record : consumer.poll(Duration.ofMillis(500))) {
                    seen.put(record.key(), record.value());
                    count++;
                }
            }
            check(count == wanted, "read " + count + " of " + wanted + " records");
            consumer.commitSync();
        }
        return seen;
    }

    public static void main(String[] arguments) throws Exception {
        bootstrap = arguments[0];
        String run = UUID.randomUUID().toString().substring(0, 8);
        String topic = "java-" + run, byDefault = "java-default-" + run, firstUse = "java-first-" + run, group = "java-group-" + run;
        try (var admin = Admin.create(connecting(Map.of()))) {
            admin.createTopics(List.of(new NewTopic(topic, 3, (short) 1).configs(Map.of("retention.ms", "86400000")))).all().get();
            ok("create");
            admin.createTopics(List.of(new NewTopic(byDefault, Optional.empty(), Optional.empty()))).all().get();
            ok("create-default-replication");
            try {
                admin.createTopics(List.of(new NewTopic(topic, 3, (short) 1))).all().get();
                check(false, "a topic was created twice");
            } catch (java.util.concurrent.ExecutionException expected) {
                check(expected.getCause() instanceof org.apache.kafka.common.errors.TopicExistsException, expected.toString());
            }
            ok("create-twice");

            produce(topic, Map.of("acks", "all"));
            ok("produce-idempotent");
            produce(byDefault, Map.of("acks", "1", "enable.idempotence", "false"));
            ok("produce");
            for (String codec : List.of("gzip", "snappy", "lz4", "zstd")) produce(byDefault, Map.of("compression.type", codec, "linger.ms", 20));
            ok("produce-compressed");
            produce(firstUse, Map.of());
            ok("first-use");

            var seen = consume(topic, group, COUNT, Map.of());
            check(seen.size() == COUNT && seen.get("k7").equals("v7"), "other records came than were sent");
            ok("consume");
            consume(byDefault, group + "-c", 5 * COUNT, Map.of("isolation.level", "read_committed"));
            ok("consume-compressed");
            var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            check(offsets.values().stream().mapToLong(OffsetAndMetadata::offset).sum() == COUNT, "committed " + offsets);
            ok("commit");
            produce(topic, Map.of());
            consume(topic, group, COUNT, Map.of("partition.assignment.strategy", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"));
            ok("resume");

            var resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
            admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(new ConfigEntry("retention.ms", "1234567"), AlterConfigOp.OpType.SET)))).all().get();
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(20);
            while (!admin.describeConfigs(List.of(resource)).all().get().get(resource).get("retention.ms").value().equals("1234567"))
                check(System.nanoTime() < deadline, "the configuration did not change");
            ok("configure");
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(5))).all().get();
            deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(20);
            while (admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size() != 5)
                check(System.nanoTime() < deadline, "the topic did not grow");
            ok("grow");
            var first = new TopicPartition(topic, 0);
            long end = admin.listOffsets(Map.of(first, OffsetSpec.latest())).all().get().get(first).offset();
            admin.deleteRecords(Map.of(first, RecordsToDelete.beforeOffset(end))).all().get();
            check(admin.listOffsets(Map.of(first, OffsetSpec.earliest())).all().get().get(first).offset() == end, "records were not deleted");
            ok("delete-records");
            check(admin.describeCluster().nodes().get().size() == 1, "nodes");
            check(admin.describeMetadataQuorum().quorumInfo().get().voters().size() == 1, "voters");
            check(!admin.describeLogDirs(List.of(admin.describeCluster().nodes().get().iterator().next().id())).allDescriptions().get().isEmpty(), "log dirs");
            check(admin.describeConsumerGroups(List.of(group)).all().get().get(group).groupId().equals(group), "group");
            check(admin.listGroups().all().get().stream().anyMatch(listed -> listed.groupId().equals(group)), "group listing");
            check(admin.describeProducers(List.of(new TopicPartition(topic, 1))).all().get().get(new TopicPartition(topic, 1)).activeProducers() != null, "producers");
            ok("describe");

            var transactional = connecting(Map.of("transactional.id", "t-" + run, "max.block.ms", 20000));
            if (arguments.length > 1 && arguments[1].equals("refuses-transactions")) {
                long started = System.nanoTime();
                try (var producer = new KafkaProducer<>(transactional, new StringSerializer(), new StringSerializer())) {
                    producer.initTransactions();
                    check(false, "a transaction began");
                } catch (org.apache.kafka.common.errors.TimeoutException slow) {
                    throw new IllegalStateException("the client retried instead of ending", slow);
                } catch (KafkaException refused) {
                    System.out.println("refused: " + refused.getClass().getSimpleName() + ": " + refused.getMessage());
                }
                ok("transactions-refused");
            }
            admin.deleteConsumerGroups(List.of(group)).all().get();
            admin.deleteTopics(List.of(topic, byDefault, firstUse)).all().get();
            ok("delete");
        }
    }
}
