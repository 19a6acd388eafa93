import java.io.*;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.locks.LockSupport;
import java.util.stream.*;

import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.errors.*;
import org.apache.kafka.common.serialization.*;

/**
 * Load and its checker for clusters of both kinds of nodes. Idempotent producers write with acks=all while nodes come and go, a
 * consumer reads along and a group commits what it has read, and "check" says whether every acknowledged record is there once, in its
 * place and in its order, and the group's offsets with it. Commands come on standard input, one a line; each answer is lines that
 * begin with "| " and one that is "done" or "failed".
 */
public class Mixed {
    static final String ORDERED = "ordered", COMPACTED = "compacted", SHORTENED = "shortened", OFFSETS = "__consumer_offsets", GROUP = "group";
    static final int ORDERED_PARTITIONS = 6, COMPACTED_PARTITIONS = 3, SHORTENED_PARTITIONS = 3, OFFSETS_PARTITIONS = 3, PRODUCERS = 3, KEYS = 40;
    /** What one command waits for at most. A producer never gives up before that: it has nothing to lose but time. */
    static final long LIMIT_SECONDS = 240;
    static final int GIVE_UP_MS = 900_000;
    /** A producer that has so many records out waits for answers. */
    static final int OUT_MAX = 500;
    /** And it sends no more than one record in so many nanoseconds. */
    static final long PACE_NANOS = 3_000_000;

    static String bootstrap, voters;
    static Admin admin;
    /**
     * Asks controllers themselves. A broker of Apache's passes on what it is asked of the quorum to whom it took for the leader last, and
     * is not told that it was wrong: only an error in the head of an answer has it look for another.
     */
    static Admin controllers;
    static final List<Writer> writers = new ArrayList<>();
    static KeyWriter keyWriter;
    static Shortener shortener;
    static Reader reader;
    static Member member;
    static int created;
    static volatile boolean loading;
    /** How many requests a producer has out at a node at most. */
    static int inFlight;
    static PrintStream out = System.out;

    public static void main(String[] arguments) throws Exception {
        bootstrap = arguments[0];
        voters = arguments[1];
        var commands = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = commands.readLine()) != null; ) {
            try {
                run(line.split(" "));
                out.println("done");
            } catch (Throwable failure) {
                var text = new StringWriter();
                failure.printStackTrace(new PrintWriter(text));
                text.toString().lines().forEach(Mixed::say);
                out.println("failed");
            }
            out.flush();
        }
        Runtime.getRuntime().halt(0);
    }

    static void run(String[] words) throws Exception {
        if (admin == null) admin = Admin.create(Map.of("bootstrap.servers", bootstrap, "default.api.timeout.ms", "60000", "request.timeout.ms", "10000", "reconnect.backoff.max.ms", "200"));
        if (controllers == null) controllers = Admin.create(Map.of("bootstrap.controllers", voters, "default.api.timeout.ms", "5000", "request.timeout.ms", "3000", "reconnect.backoff.max.ms", "200", "metadata.max.age.ms", "500"));
        switch (words[0]) {
            case "brokers" -> waitForBrokers(numbers(words[1]));
            case "create" -> createTopics(numbers(words[1]));
            case "change" -> change();
            case "in-flight" -> inFlight = Integer.parseInt(words[1]);
            case "load" -> load();
            case "progress" -> progress(Integer.parseInt(words[1]));
            case "insync" -> waitUntil("all replicas in sync", Mixed::areInSync);
            case "prefer" -> electPreferred();
            case "leaders" -> leaders().forEach((partition, leader) -> say(partition + " " + leader));
            case "controller" -> sayController();
            case "voters" -> waitForVoters(numbers(words[1]));
            case "upgrade" -> upgradeQuorum();
            case "check" -> check();
            case "shorten" -> shortener.shorten(Integer.parseInt(words[1]));
            case "starts" -> shortener.starts.forEach((partition, start) -> say(partition + " " + start));
            case "ends" -> ends().forEach((partition, end) -> say(partition + " " + end));
            default -> throw new IllegalArgumentException(words[0]);
        }
    }

    static void say(String line) {
        out.println("| " + line);
    }

    static List<Integer> numbers(String list) {
        return Arrays.stream(list.split(",")).map(Integer::valueOf).toList();
    }

    // --- What the cluster says

    interface Condition {
        boolean isSo() throws Exception;
    }

    /** While nodes come and go an answer may fail; what counts is that it comes to pass. */
    static void waitUntil(String what, Condition condition) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
        Exception last = null;
        while (true) {
            try {
                if (condition.isSo()) return;
                last = null;
            } catch (ExecutionException | KafkaException failure) {
                last = failure;
            }
            if (System.nanoTime() > deadline) throw new IllegalStateException("it did not come to this: " + what, last);
            Thread.sleep(20);
        }
    }

    static void waitForBrokers(List<Integer> wanted) throws Exception {
        waitUntil("the brokers " + wanted, () -> {
            var ids = admin.describeCluster().nodes().get().stream().map(Node::id).collect(Collectors.toSet());
            return ids.containsAll(wanted);
        });
    }

    /** Each broker is the preferred leader of as many partitions as any other, whoever places them. */
    static void createTopics(List<Integer> brokers) throws Exception {
        var common = Map.of("min.insync.replicas", "2", "segment.bytes", "1048576", "retention.ms", "-1");
        var compact = new HashMap<>(common);
        compact.putAll(Map.of("cleanup.policy", "compact", "min.cleanable.dirty.ratio", "0.01", "segment.ms", "5000", "delete.retention.ms", "100"));
        create(new NewTopic(ORDERED, assignments(brokers, ORDERED_PARTITIONS)).configs(common));
        create(new NewTopic(COMPACTED, assignments(brokers, COMPACTED_PARTITIONS)).configs(compact));
        create(new NewTopic(SHORTENED, assignments(brokers, SHORTENED_PARTITIONS)).configs(common));
        shortener = new Shortener();
        waitUntil("all replicas in sync", Mixed::areInSync);
    }

    static Map<Integer, List<Integer>> assignments(List<Integer> brokers, int partitions) {
        var assignments = new HashMap<Integer, List<Integer>>();
        for (int partition = 0; partition < partitions; partition++) {
            var replicas = new ArrayList<>(brokers);
            Collections.rotate(replicas, -partition);
            assignments.put(partition, replicas);
        }
        return assignments;
    }

    /** Whoever asked for it before an answer was lost has it. */
    static void create(NewTopic topic) throws Exception {
        waitUntil("the topic " + topic.name(), () -> {
            try {
                admin.createTopics(List.of(topic)).all().get();
            } catch (ExecutionException failure) {
                if (!(failure.getCause() instanceof TopicExistsException)) throw failure;
            }
            return true;
        });
    }

    /** Something that the quorum has to commit, and that two brokers can do. */
    static void change() throws Exception {
        create(new NewTopic("passing-" + created++, 2, (short) 2));
    }

    static Map<TopicPartition, TopicPartitionInfo> partitions() throws Exception {
        var found = new HashMap<TopicPartition, TopicPartitionInfo>();
        var names = member == null ? List.of(ORDERED, COMPACTED, SHORTENED) : List.of(ORDERED, COMPACTED, SHORTENED, OFFSETS);
        var topics = admin.describeTopics(names).allTopicNames().get();
        topics.forEach((name, topic) -> topic.partitions().forEach(one -> found.put(new TopicPartition(name, one.partition()), one)));
        return found;
    }

    static boolean areInSync() throws Exception {
        return partitions().values().stream().allMatch(one -> one.isr().size() == one.replicas().size() && one.leader() != null);
    }

    static Map<String, Integer> leaders() throws Exception {
        var leaders = new TreeMap<String, Integer>();
        partitions().forEach((partition, info) -> leaders.put(partition.toString(), info.leader() == null ? -1 : info.leader().id()));
        return leaders;
    }

    static void electPreferred() throws Exception {
        waitUntil("the preferred leaders", () -> {
            var astray = partitions().entrySet().stream()
                .filter(one -> one.getValue().leader() == null || one.getValue().leader().id() != one.getValue().replicas().get(0).id())
                .map(Map.Entry::getKey).collect(Collectors.toSet());
            if (astray.isEmpty()) return true;
            try {
                admin.electLeaders(ElectionType.PREFERRED, astray).all().get();
            } catch (ExecutionException failure) {
                if (!(failure.getCause() instanceof ElectionNotNeededException || failure.getCause() instanceof PreferredLeaderNotAvailableException)) throw failure;
            }
            return false;
        });
    }

    static QuorumInfo quorum() throws Exception {
        return controllers.describeMetadataQuorum().quorumInfo().get();
    }

    static void sayController() throws Exception {
        waitUntil("an active controller", () -> {
            int leader = quorum().leaderId();
            if (leader < 0) return false;
            say(Integer.toString(leader));
            return true;
        });
    }

    /** These and no others vote, and each of them has all that was committed when it was asked. */
    static void waitForVoters(List<Integer> wanted) throws Exception {
        waitUntil("the voters " + wanted, () -> {
            var quorum = quorum();
            var ids = quorum.voters().stream().map(QuorumInfo.ReplicaState::replicaId).collect(Collectors.toSet());
            return ids.equals(Set.copyOf(wanted)) && quorum.voters().stream().allMatch(one -> one.logEndOffset() >= quorum.highWatermark());
        });
    }

    /** The voters move from the configuration into the log (KIP-853), and each of them says which disk it votes from. */
    static void upgradeQuorum() throws Exception {
        var toFirst = Map.of("kraft.version", new FeatureUpdate((short) 1, FeatureUpdate.UpgradeType.UPGRADE));
        waitUntil("kraft.version 1", () -> {
            admin.updateFeatures(toFirst, new UpdateFeaturesOptions()).all().get();
            return true;
        });
        waitUntil("each voter's disk", () -> quorum().voters().stream().noneMatch(one -> one.replicaDirectoryId().equals(Uuid.ZERO_UUID)));
    }

    // --- Load

    static <K> KafkaProducer<K, byte[]> producer(Serializer<K> keys) {
        var settings = new HashMap<String, Object>(Map.of("bootstrap.servers", bootstrap, "acks", "all", "enable.idempotence", "true",
            "linger.ms", "5", "batch.size", "2000", "delivery.timeout.ms", GIVE_UP_MS, "max.block.ms", GIVE_UP_MS, "request.timeout.ms", "10000",
            "reconnect.backoff.max.ms", "200", "metadata.max.age.ms", "5000"));
        settings.put("max.in.flight.requests.per.connection", inFlight);
        return new KafkaProducer<>(settings, keys, new ByteArraySerializer());
    }

    /** One idempotent producer: one session from its first record to its last. Record n of a partition has the key "writer n". */
    static class Writer {
        final int id;
        final KafkaProducer<String, byte[]> producer = producer(new StringSerializer());
        final List<List<Long>> offsets = new ArrayList<>();
        final int[] acknowledged = new int[ORDERED_PARTITIONS];
        int unanswered;
        Exception failure;
        Thread thread;

        Writer(int id) {
            this.id = id;
            for (int partition = 0; partition < ORDERED_PARTITIONS; partition++) offsets.add(new ArrayList<>());
        }

        void start() {
            thread = new Thread(() -> {
                while (loading && failed() == null) {
                    LockSupport.parkNanos(PACE_NANOS);
                    if (out() < OUT_MAX) send(ThreadLocalRandom.current().nextInt(ORDERED_PARTITIONS));
                }
            });
            thread.start();
        }

        void send(int partition) {
            int number;
            synchronized (this) {
                number = offsets.get(partition).size();
                offsets.get(partition).add(null);
                unanswered++;
            }
            var record = new ProducerRecord<>(ORDERED, partition, id + " " + number, value(number));
            producer.send(record, (metadata, problem) -> answered(partition, number, metadata, problem));
        }

        synchronized void answered(int partition, int number, RecordMetadata metadata, Exception problem) {
            unanswered--;
            if (problem != null) {
                failure = problem;
                return;
            }
            acknowledged[partition]++;
            offsets.get(partition).set(number, metadata.offset());
        }

        synchronized int out() {
            return unanswered;
        }

        synchronized Exception failed() {
            return failure;
        }

        synchronized int acknowledged(int partition) {
            return acknowledged[partition];
        }

        /** Every record is answered, and none of them with an error: an idempotent producer is never told that it failed here. */
        void finish() throws Exception {
            thread.join();
            producer.flush();
            if (failed() != null) throw new IllegalStateException("producer " + id + " failed", failed());
            if (out() != 0) throw new IllegalStateException("producer " + id + " has " + out() + " records out");
        }
    }

    static byte[] value(int number) {
        var value = new byte[20 + number % 400];
        Arrays.fill(value, (byte) number);
        return value;
    }

    /** Writes to few keys, each only on the partition that its number says; now and then a tombstone. */
    static class KeyWriter {
        final KafkaProducer<String, byte[]> producer = producer(new StringSerializer());
        final Map<String, String> newest = new HashMap<>();
        int count;
        volatile Exception failure;
        Thread thread;

        void start() {
            thread = new Thread(() -> {
                while (loading && failure == null) {
                    LockSupport.parkNanos(PACE_NANOS);
                    int key = ThreadLocalRandom.current().nextInt(KEYS);
                    var value = ThreadLocalRandom.current().nextInt(20) == 0 ? null : Integer.toString(count++);
                    newest.put("key " + key, value);
                    var bytes = value == null ? null : value.getBytes(StandardCharsets.UTF_8);
                    producer.send(new ProducerRecord<>(COMPACTED, key % COMPACTED_PARTITIONS, "key " + key, bytes), (metadata, problem) -> {
                        if (problem != null) failure = problem;
                    });
                }
            });
            thread.start();
        }

        void finish() throws Exception {
            thread.join();
            producer.flush();
            if (failure != null) throw new IllegalStateException("the producer of keys failed", failure);
        }
    }

    /** Each of its records says at which offset it is. Of what it wrote, it has all deleted but the last few. */
    static class Shortener {
        final KafkaProducer<String, byte[]> producer = producer(new StringSerializer());
        final Map<TopicPartition, Long> starts = new HashMap<>();
        final Map<TopicPartition, Long> ends = new HashMap<>();

        /** As many more records of each partition; half of them go, with all that was before. */
        void shorten(int more) throws Exception {
            for (var partition : allOf(SHORTENED, SHORTENED_PARTITIONS)) {
                write(partition, more / 2);
                starts.put(partition, ends.get(partition));
                write(partition, more - more / 2);
            }
            var wanted = starts.entrySet().stream().collect(Collectors.toMap(Map.Entry::getKey, one -> RecordsToDelete.beforeOffset(one.getValue())));
            waitUntil("records are deleted", () -> {
                admin.deleteRecords(wanted).all().get();
                return true;
            });
        }

        /**
         * No batch has records of before and after. Where a log starts amid a batch, a follower of Apache's that has led until then is told
         * by a leader of Apache's to cut its log there, takes that for its end though the whole batch goes, and fails with the next one.
         */
        void write(TopicPartition partition, int more) throws Exception {
            long end = ends.getOrDefault(partition, 0L);
            var answers = new ArrayList<Future<RecordMetadata>>();
            for (long next = end; next < end + more; next++)
                answers.add(producer.send(new ProducerRecord<>(SHORTENED, partition.partition(), Long.toString(next), value((int) next))));
            for (var answer : answers) answer.get();
            ends.put(partition, end + more);
        }

        /** What was not deleted is there, and nothing else. */
        void check() throws Exception {
            for (var partition : ends.keySet()) {
                long next = starts.get(partition);
                for (var record : readAll(partition)) {
                    if (record.offset() != next || !record.key().equals(Long.toString(next)))
                        throw new IllegalStateException(partition + " has " + record.key() + " at " + record.offset() + ", where " + next + " belongs");
                    next++;
                }
                if (next != ends.get(partition)) throw new IllegalStateException(partition + " ends at " + next + ", and " + ends.get(partition) + " records were acknowledged");
            }
        }
    }

    /** Reads along. What it was shown once has to be there at the end, at the same offset. It is never sent back. */
    static class Reader {
        final List<TreeMap<Long, String>> seen = new ArrayList<>();
        volatile Exception failure;
        Thread thread;

        Reader() {
            for (int partition = 0; partition < ORDERED_PARTITIONS; partition++) seen.add(new TreeMap<>());
        }

        void start() {
            thread = new Thread(() -> {
                try (var consumer = consumer("none")) {
                    var partitions = allOf(ORDERED, ORDERED_PARTITIONS);
                    consumer.assign(partitions);
                    for (var one : partitions) {
                        var read = seen.get(one.partition());
                        consumer.seek(one, read.isEmpty() ? 0 : read.lastKey() + 1);
                    }
                    while (loading) {
                        for (var record : consumer.poll(Duration.ofMillis(100))) seen.get(record.partition()).put(record.offset(), record.key());
                    }
                } catch (Exception problem) {
                    failure = problem;
                }
            });
            thread.start();
        }

        void finish() throws Exception {
            thread.join();
            if (failure != null) throw new IllegalStateException("the consumer failed that read along", failure);
        }
    }

    /** The one member of a group: it reads everything once, and commits what it has read. Its coordinator dies now and then. */
    static class Member {
        final Map<TopicPartition, Long> committed = new ConcurrentHashMap<>();
        /** What it began to commit: that may be done, and the answer lost. */
        final Map<TopicPartition, Long> read = new HashMap<>();
        volatile boolean joined;
        volatile Exception failure;
        Thread thread;

        void start() {
            joined = true;
            thread = new Thread(() -> {
                try (var consumer = consumer("none", Map.of("group.id", GROUP, "session.timeout.ms", "10000", "auto.offset.reset", "earliest"))) {
                    consumer.subscribe(List.of(ORDERED));
                    while (joined) readAndCommit(consumer);
                } catch (Exception problem) {
                    failure = problem;
                }
            });
            thread.start();
        }

        void readAndCommit(KafkaConsumer<String, byte[]> consumer) {
            var records = consumer.poll(Duration.ofMillis(100));
            if (records.isEmpty()) return;
            for (var partition : records.partitions()) {
                long first = records.records(partition).get(0).offset();
                long least = committed.getOrDefault(partition, 0L), most = read.getOrDefault(partition, 0L);
                if (first < least || first > most)
                    throw new IllegalStateException("the group goes on in " + partition + " at " + first + ", having committed " + least + " and read up to " + most);
            }
            records.nextOffsets().forEach((partition, next) -> read.merge(partition, next.offset(), Math::max));
            try {
                consumer.commitSync(Duration.ofSeconds(60));
                records.nextOffsets().forEach((partition, next) -> committed.merge(partition, next.offset(), Math::max));
            } catch (CommitFailedException | RebalanceInProgressException | org.apache.kafka.common.errors.TimeoutException lost) {
                // Its coordinator is gone for longer than it waits, or took it for gone: it reads some of it again.
            }
        }

        boolean hasReadAll() throws Exception {
            if (failure != null) throw new IllegalStateException("the group failed", failure);
            return ends(ORDERED, ORDERED_PARTITIONS).entrySet().stream().allMatch(end -> committed.getOrDefault(end.getKey(), 0L) >= end.getValue());
        }

        /** What was committed is what the group goes on from. */
        void finish() throws Exception {
            waitUntil("the group has read all of it", this::hasReadAll);
            joined = false;
            thread.join();
            if (failure != null) throw new IllegalStateException("the group failed", failure);
            var stored = admin.listConsumerGroupOffsets(GROUP).partitionsToOffsetAndMetadata().get();
            for (var one : committed.entrySet())
                if (stored.get(one.getKey()).offset() != one.getValue()) throw new IllegalStateException("the group has " + stored + ", and committed " + committed);
        }
    }

    static KafkaConsumer<String, byte[]> consumer(String reset) {
        return consumer(reset, Map.of());
    }

    static KafkaConsumer<String, byte[]> consumer(String reset, Map<String, Object> more) {
        var properties = new HashMap<String, Object>(Map.of("bootstrap.servers", bootstrap, "auto.offset.reset", reset, "enable.auto.commit", "false",
            "default.api.timeout.ms", "60000", "reconnect.backoff.max.ms", "200"));
        properties.putAll(more);
        return new KafkaConsumer<>(properties, new StringDeserializer(), new ByteArrayDeserializer());
    }

    static List<TopicPartition> allOf(String topic, int partitions) {
        return IntStream.range(0, partitions).mapToObj(one -> new TopicPartition(topic, one)).toList();
    }

    /** Begins, or goes on: the same producers, the same numbers. */
    static void load() {
        if (writers.isEmpty()) {
            for (int id = 0; id < PRODUCERS; id++) writers.add(new Writer(id));
            keyWriter = new KeyWriter();
            reader = new Reader();
            member = new Member();
        }
        loading = true;
        writers.forEach(Writer::start);
        keyWriter.start();
        reader.start();
        member.start();
    }

    /** Waits until every partition has so many more acknowledged records than now. */
    static void progress(int more) throws Exception {
        var goals = IntStream.range(0, ORDERED_PARTITIONS).map(one -> acknowledged(one) + more).toArray();
        waitUntil("acknowledgements of every partition", () -> {
            for (var writer : writers) if (writer.failed() != null) throw new IllegalStateException("producer " + writer.id + " failed", writer.failed());
            return IntStream.range(0, ORDERED_PARTITIONS).allMatch(one -> acknowledged(one) >= goals[one]);
        });
    }

    static int acknowledged(int partition) {
        return writers.stream().mapToInt(writer -> writer.acknowledged(partition)).sum();
    }

    // --- The checker

    static void check() throws Exception {
        loading = false;
        for (var writer : writers) writer.finish();
        keyWriter.finish();
        reader.finish();
        member.finish();
        int records = 0;
        for (var partition : allOf(ORDERED, ORDERED_PARTITIONS)) records += checkOrdered(partition);
        checkCompacted();
        shortener.check();
        say(records + " records of " + PRODUCERS + " producers, once and in order");
    }

    /** Each producer's records are there from the first to the last, once, in order, where they were acknowledged. */
    static int checkOrdered(TopicPartition partition) throws Exception {
        int index = partition.partition();
        var next = new int[PRODUCERS];
        var seenAlong = new TreeMap<>(reader.seen.get(index));
        for (var record : readAll(partition)) {
            var words = record.key().split(" ");
            int id = Integer.parseInt(words[0]), number = Integer.parseInt(words[1]);
            if (number != next[id])
                throw new IllegalStateException(partition + " has record " + number + " of producer " + id + " at " + record.offset() + ", where " + next[id] + " belongs");
            if (!Arrays.equals(record.value(), value(number))) throw new IllegalStateException(partition + " has other bytes at " + record.offset());
            next[id]++;
            // A repeated batch that the broker has had for long is acknowledged without an offset.
            long told = writers.get(id).offsets.get(index).get(number);
            if (told >= 0 && told != record.offset())
                throw new IllegalStateException(partition + " has record " + number + " of producer " + id + " at " + record.offset() + ", and " + told + " was acknowledged");
            var along = seenAlong.remove(record.offset());
            if (along != null && !along.equals(record.key()))
                throw new IllegalStateException(partition + " showed " + along + " at " + record.offset() + ", where " + record.key() + " is now");
        }
        if (!seenAlong.isEmpty()) throw new IllegalStateException(partition + " showed records that are gone: " + seenAlong);
        for (var writer : writers) {
            int sent = writer.offsets.get(index).size();
            if (next[writer.id] != sent) throw new IllegalStateException(partition + " has " + next[writer.id] + " of " + sent + " records of producer " + writer.id);
        }
        return Arrays.stream(next).sum();
    }

    /** The newest record of each key is the one that was sent last. */
    static void checkCompacted() throws Exception {
        var newest = new HashMap<String, String>();
        for (var partition : allOf(COMPACTED, COMPACTED_PARTITIONS)) {
            for (var record : readAll(partition)) newest.put(record.key(), record.value() == null ? null : new String(record.value(), StandardCharsets.UTF_8));
        }
        // A tombstone may be gone.
        newest.values().removeIf(Objects::isNull);
        var sent = new HashMap<>(keyWriter.newest);
        sent.values().removeIf(Objects::isNull);
        if (!newest.equals(sent)) throw new IllegalStateException("the keys end as " + newest + ", and were sent as " + sent);
    }

    static List<ConsumerRecord<String, byte[]>> readAll(TopicPartition partition) throws Exception {
        var records = new ArrayList<ConsumerRecord<String, byte[]>>();
        try (var consumer = consumer("earliest")) {
            consumer.assign(List.of(partition));
            consumer.seekToBeginning(List.of(partition));
            long end = consumer.endOffsets(List.of(partition)).get(partition);
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
            while (consumer.position(partition) < end) {
                consumer.poll(Duration.ofMillis(100)).forEach(records::add);
                if (System.nanoTime() > deadline) throw new IllegalStateException("reading " + partition + " does not come to " + end);
            }
        }
        return records;
    }

    static Map<String, Long> ends() throws Exception {
        var ends = new TreeMap<String, Long>();
        for (var topic : Map.of(ORDERED, ORDERED_PARTITIONS, COMPACTED, COMPACTED_PARTITIONS, SHORTENED, SHORTENED_PARTITIONS, OFFSETS, OFFSETS_PARTITIONS).entrySet())
            ends(topic.getKey(), topic.getValue()).forEach((partition, end) -> ends.put(partition.toString(), end));
        return ends;
    }

    static Map<TopicPartition, Long> ends(String topic, int partitions) throws Exception {
        var asked = allOf(topic, partitions).stream().collect(Collectors.toMap(one -> one, one -> OffsetSpec.latest()));
        var ends = new HashMap<TopicPartition, Long>();
        for (var end : admin.listOffsets(asked).all().get().entrySet()) ends.put(end.getKey(), end.getValue().offset());
        return ends;
    }
}
