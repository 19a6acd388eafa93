import java.time.Duration;
import java.util.List;
import java.util.Map;

import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** Fills topics of a real broker with every kind of batch that a client can make, and reads a topic back. */
public class LogFiles {
    static final int RECORDS = 2000;

    public static void main(String[] args) throws Exception {
        String bootstrap = args[1];
        switch (args[0]) {
            case "write" -> {
                for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
                    writeCodec(bootstrap, codec);
                }
                writeTransactions(bootstrap);
            }
            case "read" -> read(bootstrap, args[2], Integer.parseInt(args[3]), args[4]);
            default -> throw new IllegalArgumentException(args[0]);
        }
        // A transaction that is left open must stay open: no close, no shutdown hook.
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }

    static KafkaProducer<String, String> producer(String bootstrap, Map<String, Object> more) {
        var config = new java.util.HashMap<String, Object>(Map.of(
            "bootstrap.servers", bootstrap, "key.serializer", StringSerializer.class,
            "value.serializer", StringSerializer.class, "linger.ms", "20"));
        config.putAll(more);
        return new KafkaProducer<>(config);
    }

    static String value(int i) {
        return "value " + i + " " + "abcdefghij".repeat(i % 150);
    }

    static void writeCodec(String bootstrap, String codec) throws Exception {
        try (var producer = producer(bootstrap, Map.of("compression.type", codec))) {
            for (int i = 0; i < RECORDS; i++) {
                var headers = List.of(new RecordHeader("n", Integer.toString(i).getBytes()));
                var key = i % 3 == 0 ? null : "key " + i;
                producer.send(new ProducerRecord<>("codec-" + codec, 0, 1_000_000_000_000L + i, key, value(i), List.copyOf(headers)));
            }
        }
    }

    static void writeTransactions(String bootstrap) throws Exception {
        var committing = producer(bootstrap, Map.of("transactional.id", "committing"));
        var aborting = producer(bootstrap, Map.of("transactional.id", "aborting"));
        var leaving = producer(bootstrap, Map.of("transactional.id", "leaving", "transaction.timeout.ms", "600000"));
        for (var producer : List.of(committing, aborting, leaving)) {
            producer.initTransactions();
        }
        for (int round = 0; round < 5; round++) {
            committing.beginTransaction();
            aborting.beginTransaction();
            for (int i = 0; i < 10; i++) {
                committing.send(new ProducerRecord<>("transactions", 0, null, "committed " + (round * 10 + i)));
                aborting.send(new ProducerRecord<>("transactions", 0, null, "aborted " + (round * 10 + i)));
            }
            committing.flush();
            aborting.flush();
            aborting.abortTransaction();
            committing.commitTransaction();
        }
        leaving.beginTransaction();
        leaving.send(new ProducerRecord<>("transactions", 0, null, "left open")).get();
    }

    static void read(String bootstrap, String topic, int count, String isolation) {
        var config = Map.<String, Object>of(
            "bootstrap.servers", bootstrap, "key.deserializer", StringDeserializer.class,
            "value.deserializer", StringDeserializer.class, "isolation.level", isolation);
        var partition = List.of(new TopicPartition(topic, 0));
        var deadline = System.nanoTime() + Duration.ofSeconds(60).toNanos();
        try (var consumer = new KafkaConsumer<String, String>(config)) {
            consumer.assign(partition);
            consumer.seekToBeginning(partition);
            int seen = 0;
            while (seen < count && System.nanoTime() < deadline) {
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(200))) {
                    System.out.println(record.offset() + "\t" + record.value());
                    seen++;
                }
            }
        }
    }
}
