import java.io.*;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;

import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.errors.*;
import org.apache.kafka.common.serialization.*;

/**
 * One partition whose replicas go and come back: who leads it, who is in sync, and who may lead (KIP-966), as Apache's client is told.
 * Commands come on standard input, one a line; each answer is lines that begin with "| " and one that is "done" or "failed".
 */
public class Eligible {
    static final TopicPartition PARTITION = new TopicPartition("few", 0);
    static final long LIMIT_SECONDS = 120;

    static String bootstrap;
    static Admin admin;

    public static void main(String[] arguments) throws Exception {
        bootstrap = arguments[0];
        admin = Admin.create(Map.of("bootstrap.servers", bootstrap, "default.api.timeout.ms", "60000", "request.timeout.ms", "10000", "reconnect.backoff.max.ms", "200"));
        var commands = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = commands.readLine()) != null; ) {
            try {
                run(line.split(" "));
                System.out.println("done");
            } catch (Throwable failure) {
                var text = new StringWriter();
                failure.printStackTrace(new PrintWriter(text));
                text.toString().lines().forEach(Eligible::say);
                System.out.println("failed");
            }
            System.out.flush();
        }
        Runtime.getRuntime().halt(0);
    }

    static void run(String[] words) throws Exception {
        switch (words[0]) {
            case "create" -> create(Arrays.stream(words[1].split(",")).map(Integer::valueOf).toList());
            case "until" -> waitUntil(String.join(" ", Arrays.copyOfRange(words, 1, words.length)));
            case "write" -> write(words[1], Map.of());
            case "refused" -> refused(words[1]);
            case "read" -> read();
            default -> throw new IllegalArgumentException(words[0]);
        }
    }

    static void say(String line) {
        System.out.println("| " + line);
    }

    /** As soon as these brokers are there. */
    static void create(List<Integer> replicas) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
        while (true) {
            try {
                admin.createTopics(List.of(new NewTopic(PARTITION.topic(), Map.of(0, replicas)))).all().get();
                return;
            } catch (ExecutionException failure) {
                if (failure.getCause() instanceof TopicExistsException) return;
                if (System.nanoTime() > deadline) throw failure;
                Thread.sleep(50);
            }
        }
    }

    /** The leader, who is in sync, who is eligible, and who led last. */
    static String state() throws Exception {
        var one = admin.describeTopics(List.of(PARTITION.topic())).allTopicNames().get().get(PARTITION.topic()).partitions().get(0);
        var leader = one.leader() == null || one.leader().isEmpty() ? "-" : Integer.toString(one.leader().id());
        return String.join(" ", leader, ids(one.isr()), ids(one.elr()), ids(one.lastKnownElr()));
    }

    static String ids(List<Node> nodes) {
        return nodes.isEmpty() ? "-" : nodes.stream().map(Node::id).sorted().map(String::valueOf).collect(Collectors.joining(","));
    }

    static void waitUntil(String wanted) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
        Object last = null;
        do {
            try {
                last = state();
                if (last.equals(wanted)) return;
            } catch (ExecutionException failure) {
                last = failure;
            }
            Thread.sleep(20);
        } while (System.nanoTime() < deadline);
        throw new IllegalStateException("it did not come to " + wanted + "; at last it was " + last);
    }

    static void write(String value, Map<String, Object> more) throws Exception {
        var properties = new HashMap<String, Object>(Map.of("bootstrap.servers", bootstrap, "acks", "all", "reconnect.backoff.max.ms", "200"));
        properties.putAll(more);
        try (var producer = new KafkaProducer<>(properties, new StringSerializer(), new StringSerializer())) {
            producer.send(new ProducerRecord<>(PARTITION.topic(), 0, null, value)).get();
        }
    }

    /** There are too few replicas in sync for it, whether the leader knew that before it wrote or only then. */
    static void refused(String value) throws Exception {
        try {
            write(value, Map.of("enable.idempotence", "false", "retries", "0"));
        } catch (ExecutionException failure) {
            var cause = failure.getCause();
            if (cause instanceof NotEnoughReplicasException || cause instanceof NotEnoughReplicasAfterAppendException) return;
            throw failure;
        }
        throw new IllegalStateException(value + " was acknowledged");
    }

    static void read() throws Exception {
        var properties = Map.<String, Object>of("bootstrap.servers", bootstrap, "enable.auto.commit", "false", "reconnect.backoff.max.ms", "200");
        try (var consumer = new KafkaConsumer<>(properties, new StringDeserializer(), new StringDeserializer())) {
            consumer.assign(List.of(PARTITION));
            consumer.seekToBeginning(List.of(PARTITION));
            long end = consumer.endOffsets(List.of(PARTITION)).get(PARTITION);
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
            while (consumer.position(PARTITION) < end) {
                for (var record : consumer.poll(Duration.ofMillis(100))) say(record.value());
                if (System.nanoTime() > deadline) throw new IllegalStateException("reading does not come to " + end);
            }
        }
    }
}
