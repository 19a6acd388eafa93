import java.io.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.*;

/**
 * Apache's own clients and tools, for brokers that take turns on one data directory. It lives through all turns: its idempotent
 * producers and its group go on with whichever broker is there. Commands come on standard input, one a line; each answer is lines
 * that begin with "| " and one that is "done" or "failed".
 */
public class Takeover {
    static final String CODECS = "codecs", STAMPED = "stamped", TRANSACTIONS = "transactions", COMPACT = "compact",
        COMPACT_TRANSACTIONS = "compact-transactions", CUT = "cut", STEADY = "steady", HAMMERED = "hammered", UNDECIDED = "undecided";
    static final List<String> COMPRESSIONS = List.of("none", "gzip", "snappy", "lz4", "zstd");
    static final long LIMIT_SECONDS = 60;
    /** Records are this old at first and come a few seconds apart, so that segments roll by their times. */
    static final long AGE_MS = TimeUnit.DAYS.toMillis(3);

    static String bootstrap;
    static List<Path> directories;
    static Random random;
    static Admin admin;
    static long clock = System.currentTimeMillis() - AGE_MS;
    static int counter;
    static final Map<String, KafkaProducer<String, byte[]>> producers = new HashMap<>();
    static final Set<String> openIds = new LinkedHashSet<>();
    static KafkaConsumer<String, byte[]> steady;
    static PrintStream out = System.out;
    static Thread hammer;
    static volatile boolean hammering;
    /** How many records the hammer has sent, and which offset each acknowledgement told. */
    static int hammered;
    static final Map<Integer, Long> acknowledged = new java.util.concurrent.ConcurrentHashMap<>();
    /** Of each transaction of the one who transacts while a broker goes: what is known of its end, and the first offset that was told. */
    static final Map<Integer, Fate> fates = new java.util.concurrent.ConcurrentSkipListMap<>();
    static final Map<Integer, Long> firstOffsets = new java.util.concurrent.ConcurrentHashMap<>();
    static KafkaProducer<String, byte[]> undecided;
    static Thread transactor;
    static volatile boolean transacting;

    /** From ASKED_* on the coordinator may have heard of it. */
    enum Fate { OPEN, ASKED_TO_COMMIT, ASKED_TO_ABORT, COMMITTED, ABORTED }

    public static void main(String[] arguments) throws Exception {
        bootstrap = arguments[0];
        directories = Arrays.stream(arguments).skip(1).map(Path::of).toList();
        var commands = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = commands.readLine()) != null; ) {
            try {
                run(line.split(" "));
                out.println("done");
            } catch (Throwable failure) {
                var text = new StringWriter();
                failure.printStackTrace(new PrintWriter(text));
                text.toString().lines().forEach(Takeover::say);
                out.println("failed");
            }
            out.flush();
        }
        // What is open must stay open: no close, no shutdown hook.
        Runtime.getRuntime().halt(0);
    }

    static void run(String[] words) throws Exception {
        if (admin == null) admin = Admin.create(Map.of("bootstrap.servers", bootstrap, "default.api.timeout.ms", "60000"));
        switch (words[0]) {
            case "write" -> write(words[1].equals("apache"), Long.parseLong(words[2]), Integer.parseInt(words[3]));
            case "read" -> read();
            case "hammer" -> { if (words[1].equals("apache")) startToTransact(); startToHammer(); }
            case "gone" -> transacting = false;
            case "settle" -> { settle(); settleTransactions(words[1].equals("apache")); }
            case "dump" -> dump(Arrays.copyOfRange(words, 1, words.length));
            default -> throw new IllegalArgumentException(words[0]);
        }
    }

    static void say(String line) {
        out.println("| " + line);
    }

    // --- Writing

    /** `full` where transactions are served. */
    static void write(boolean full, long seed, int steps) throws Exception {
        random = new Random(seed);
        createTopics(full);
        if (full) endTransactionsLeftOpen();
        for (int step = 0; step < steps; step++) {
            switch (random.nextInt(full ? 12 : 8)) {
                case 0, 1 -> produceWithEveryCodec();
                case 2 -> produce(CODECS, producer("steady-" + random.nextInt(3)), 1 + random.nextInt(80));
                case 3 -> produce(STAMPED, producer("steady-0"), 1 + random.nextInt(60));
                case 4 -> { writeKeys(COMPACT, producer("steady-1")); produce(CUT, producer("steady-2"), 1 + random.nextInt(100)); }
                case 5 -> deleteRecords();
                case 6 -> commitOffsets();
                case 7 -> changeTopics();
                default -> transact();
            }
        }
        poll();
        clean();
        if (full && random.nextInt(3) > 0) leaveTransactionOpen();
        if (full) waitForMarkers();
    }

    /** A commit is answered before its markers are written. */
    static void waitForMarkers() throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
        var preparing = new ListTransactionsOptions().filterStates(List.of(TransactionState.PREPARE_ABORT, TransactionState.PREPARE_COMMIT));
        while (!admin.listTransactions(preparing).all().get().isEmpty()) {
            if (System.nanoTime() > deadline) throw new IllegalStateException("markers are missing");
            Thread.sleep(10);
        }
    }

    static void createTopics(boolean full) throws Exception {
        var wanted = new ArrayList<NewTopic>();
        wanted.add(topic(CODECS, 2, "segment.ms", "60000"));
        wanted.add(topic(STAMPED, 1, "message.timestamp.type", "LogAppendTime", "segment.bytes", "1048576", "compression.type", "lz4"));
        wanted.add(topic(TRANSACTIONS, 2, "segment.ms", "60000"));
        wanted.add(topic(COMPACT, 1, "cleanup.policy", "compact", "min.cleanable.dirty.ratio", "1.0", "segment.ms", "60000", "delete.retention.ms", "100"));
        wanted.add(topic(COMPACT_TRANSACTIONS, 1, "cleanup.policy", "compact", "min.cleanable.dirty.ratio", "1.0", "segment.ms", "60000"));
        wanted.add(topic(CUT, 1, "segment.ms", "60000", "cleanup.policy", "delete"));
        wanted.add(topic(HAMMERED, 1, "segment.bytes", "1048576"));
        wanted.add(topic(UNDECIDED, 1));
        var there = admin.listTopics().names().get();
        wanted.removeIf(topic -> there.contains(topic.name()));
        admin.createTopics(wanted).all().get();
    }

    static NewTopic topic(String name, int partitions, String... configs) {
        var map = new HashMap<String, String>();
        for (int i = 0; i < configs.length; i += 2) map.put(configs[i], configs[i + 1]);
        return new NewTopic(name, partitions, (short) 1).configs(map);
    }

    static KafkaProducer<String, byte[]> open(Map<String, Object> more) {
        var config = new HashMap<String, Object>(Map.of("bootstrap.servers", bootstrap, "linger.ms", "5",
            "delivery.timeout.ms", "60000", "reconnect.backoff.max.ms", "200", "batch.size", 16384 << random.nextInt(6)));
        config.putAll(more);
        return new KafkaProducer<>(config, new StringSerializer(), new ByteArraySerializer());
    }

    /** An idempotent producer that lives as long as this process. */
    static KafkaProducer<String, byte[]> producer(String name) {
        return producers.computeIfAbsent(name, key -> open(Map.of("compression.type", COMPRESSIONS.get(random.nextInt(5)))));
    }

    static byte[] value() {
        var text = ("value " + counter++ + " ").getBytes(StandardCharsets.UTF_8);
        int size = switch (random.nextInt(40)) {
            case 0 -> 100_000 + random.nextInt(200_000);
            case 1, 2, 3 -> random.nextInt(5_000);
            default -> random.nextInt(100);
        };
        var value = Arrays.copyOf(text, text.length + size);
        if (random.nextBoolean()) {
            var noise = new byte[size];
            random.nextBytes(noise);
            System.arraycopy(noise, 0, value, text.length, size);
        }
        return value;
    }

    static long time() {
        clock += random.nextInt(4_000);
        // Some records come late.
        return random.nextInt(10) == 0 ? clock - random.nextInt(100_000) : clock;
    }

    static int partition(String topic) {
        return topic.equals(CODECS) || topic.equals(TRANSACTIONS) ? random.nextInt(2) : 0;
    }

    static void produce(String topic, KafkaProducer<String, byte[]> producer, int count) throws Exception {
        var sent = new ArrayList<java.util.concurrent.Future<RecordMetadata>>();
        for (int i = 0; i < count; i++) {
            var record = new ProducerRecord<>(topic, partition(topic), (Long) time(), random.nextInt(4) == 0 ? null : "key " + random.nextInt(50), value());
            record.headers().add("n", Integer.toString(i).getBytes());
            sent.add(producer.send(record));
        }
        producer.flush();
        for (var one : sent) one.get(LIMIT_SECONDS, TimeUnit.SECONDS);
    }

    static void writeKeys(String topic, KafkaProducer<String, byte[]> producer) throws Exception {
        var sent = new ArrayList<java.util.concurrent.Future<RecordMetadata>>();
        int count = 20 + random.nextInt(100);
        for (int i = 0; i < count; i++) {
            var value = random.nextInt(5) == 0 ? null : value();
            sent.add(producer.send(new ProducerRecord<>(topic, 0, (Long) time(), "key " + random.nextInt(30), value)));
        }
        producer.flush();
        for (var one : sent) one.get(LIMIT_SECONDS, TimeUnit.SECONDS);
    }

    static void produceWithEveryCodec() throws Exception {
        for (String codec : COMPRESSIONS) {
            var options = new HashMap<String, Object>(Map.of("compression.type", codec));
            if (random.nextBoolean()) options.putAll(Map.of("enable.idempotence", "false", "acks", random.nextBoolean() ? "1" : "all"));
            try (var producer = open(options)) {
                produce(random.nextInt(4) == 0 ? STAMPED : CODECS, producer, 1 + random.nextInt(60));
            }
        }
    }

    static void transact() throws Exception {
        var id = "id-" + random.nextInt(6);
        if (openIds.contains(id)) return;
        try (var producer = open(Map.of("transactional.id", id, "compression.type", COMPRESSIONS.get(random.nextInt(5))))) {
            producer.initTransactions();
            for (int round = 1 + random.nextInt(3); round > 0; round--) {
                producer.beginTransaction();
                sendSome(producer);
                if (random.nextInt(3) == 0) {
                    var offsets = Map.of(new TopicPartition(CODECS, 0), new OffsetAndMetadata(random.nextInt(1000), Optional.of(0), "in " + id));
                    producer.sendOffsetsToTransaction(offsets, new ConsumerGroupMetadata("group-of-" + id));
                }
                producer.flush();
                if (random.nextInt(5) < 2) producer.abortTransaction(); else producer.commitTransaction();
            }
        }
    }

    static void sendSome(KafkaProducer<String, byte[]> producer) throws Exception {
        if (random.nextInt(3) > 0) produce(TRANSACTIONS, producer, 1 + random.nextInt(20));
        if (random.nextInt(3) == 0) writeKeys(COMPACT_TRANSACTIONS, producer);
        if (random.nextInt(4) == 0) produce(CODECS, producer, 1 + random.nextInt(10));
    }

    static void leaveTransactionOpen() throws Exception {
        var id = "open-" + random.nextInt(4);
        if (!openIds.add(id)) return;
        // Dropped, not closed: nobody ends it but its coordinator.
        var producer = open(Map.of("transactional.id", id, "transaction.timeout.ms", "900000"));
        producer.initTransactions();
        producer.beginTransaction();
        produce(TRANSACTIONS, producer, 1 + random.nextInt(5));
        sendSome(producer);
        if (random.nextBoolean()) {
            producer.sendOffsetsToTransaction(Map.of(new TopicPartition(CODECS, 1), new OffsetAndMetadata(7)), new ConsumerGroupMetadata("group-of-" + id));
        }
        producer.flush();
        producers.put(id, producer);
        say("left open: " + id);
    }

    /** A new producer of the same id makes the coordinator abort what the last one left. */
    static void endTransactionsLeftOpen() {
        for (var id : List.copyOf(openIds)) {
            if (random.nextBoolean()) continue;
            try (var producer = open(Map.of("transactional.id", id))) {
                producer.initTransactions();
            }
            producers.remove(id).close(Duration.ZERO);
            openIds.remove(id);
            say("ended: " + id);
        }
    }

    static void deleteRecords() throws Exception {
        var partition = new TopicPartition(random.nextInt(4) == 0 ? TRANSACTIONS : CUT, 0);
        // An Apache broker that starts knows nothing of an open transaction whose first records were deleted.
        long start = offset(partition, OffsetSpec.earliest()), end = stable(partition);
        if (end == start) return;
        long before = start + random.nextLong(end - start + 1);
        admin.deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(before))).all().get();
    }

    static long offset(TopicPartition partition, OffsetSpec spec) throws Exception {
        return admin.listOffsets(Map.of(partition, spec)).partitionResult(partition).get().offset();
    }

    static void commitOffsets() throws Exception {
        var group = "group-" + random.nextInt(4);
        var offsets = new HashMap<TopicPartition, OffsetAndMetadata>();
        for (var topic : List.of(CODECS, STAMPED, CUT)) {
            if (random.nextBoolean()) offsets.put(new TopicPartition(topic, 0), new OffsetAndMetadata(random.nextInt(5_000), Optional.of(0), "by hand " + counter++));
        }
        if (!offsets.isEmpty()) admin.alterConsumerGroupOffsets(group, offsets).all().get();
    }

    static void changeTopics() throws Exception {
        var passing = admin.listTopics().names().get().stream().filter(name -> name.startsWith("passing-")).sorted().toList();
        if (passing.isEmpty() || random.nextInt(3) == 0) {
            admin.createTopics(List.of(topic("passing-" + counter++, 1 + random.nextInt(4), "retention.ms", "-1"))).all().get();
            return;
        }
        var name = passing.get(random.nextInt(passing.size()));
        switch (random.nextInt(3)) {
            case 0 -> admin.deleteTopics(List.of(name)).all().get();
            case 1 -> {
                int now = admin.describeTopics(List.of(name)).topicNameValues().get(name).get().partitions().size();
                admin.createPartitions(Map.of(name, NewPartitions.increaseTo(now + 1))).all().get();
            }
            default -> configure(name, "max.message.bytes", Integer.toString(100_000 + random.nextInt(900_000)));
        }
    }

    static void configure(String topic, String key, String value) throws Exception {
        var resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        var op = new AlterConfigOp(new ConfigEntry(key, value), AlterConfigOp.OpType.SET);
        admin.incrementalAlterConfigs(Map.of(resource, List.of(op))).all().get();
    }

    /** The group that lives through all turns takes what is there and commits. */
    static void poll() throws Exception {
        if (steady == null) {
            steady = new KafkaConsumer<>(Map.of("bootstrap.servers", bootstrap, "group.id", STEADY, "auto.offset.reset", "earliest",
                "enable.auto.commit", "false", "session.timeout.ms", "300000", "max.poll.interval.ms", "600000",
                "reconnect.backoff.max.ms", "200"), new StringDeserializer(), new ByteArrayDeserializer());
            steady.subscribe(List.of(CODECS, STAMPED));
        }
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
        int seen = 0;
        while (true) {
            int count = steady.poll(Duration.ofMillis(100)).count();
            seen += count;
            if (count == 0 && !steady.assignment().isEmpty()) {
                var ends = steady.endOffsets(steady.assignment());
                if (ends.entrySet().stream().allMatch(end -> steady.position(end.getKey()) >= end.getValue())) break;
            }
            if (System.nanoTime() > deadline) throw new IllegalStateException("the steady group read " + seen + " records and no more");
        }
        steady.commitSync();
        say("the steady group read " + seen);
    }

    // --- Cleaning

    /** Lets the cleaner have its way until it has nothing to do, so that nothing moves afterwards. */
    static void clean() throws Exception {
        for (var topic : List.of(COMPACT, COMPACT_TRANSACTIONS)) {
            var partition = new TopicPartition(topic, 0);
            if (random.nextInt(4) == 0 || offset(partition, OffsetSpec.latest()) == 0) continue;
            configure(topic, "min.cleanable.dirty.ratio", "0.0");
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
            while (cleaned(topic) < cleanable(topic)) {
                if (System.nanoTime() > deadline) throw new IllegalStateException(topic + " was cleaned to " + cleaned(topic) + ", not to " + cleanable(topic));
                Thread.sleep(20);
            }
            configure(topic, "min.cleanable.dirty.ratio", "1.0");
            say("cleaned " + topic + " to " + cleaned(topic));
        }
    }

    static long cleaned(String topic) throws IOException {
        for (var directory : directories) {
            var file = directory.resolve("cleaner-offset-checkpoint");
            if (!Files.exists(file)) continue;
            for (var line : Files.readAllLines(file)) {
                if (line.startsWith(topic + " 0 ")) return Long.parseLong(line.split(" ")[2]);
            }
        }
        return 0;
    }

    /**
     * Up to where a cleaner comes: to the active segment, or to the one where the oldest open transaction begins. Whoever opened
     * that may be dropped long since, and while ours serves nobody can end it.
     */
    static long cleanable(String topic) throws Exception {
        long stable = stable(new TopicPartition(topic, 0));
        for (var directory : directories) {
            var folder = directory.resolve(topic + "-0");
            if (!Files.isDirectory(folder)) continue;
            try (var files = Files.list(folder)) {
                return files.map(file -> file.getFileName().toString()).filter(name -> name.endsWith(".log"))
                    .mapToLong(name -> Long.parseLong(name.replace(".log", ""))).filter(base -> base <= stable).max().orElse(0);
            }
        }
        throw new FileNotFoundException(topic);
    }

    static long stable(TopicPartition partition) throws Exception {
        var committed = new ListOffsetsOptions(IsolationLevel.READ_COMMITTED);
        return admin.listOffsets(Map.of(partition, OffsetSpec.latest()), committed).partitionResult(partition).get().offset();
    }

    // --- Writing while a broker goes

    /**
     * Writes until told to settle: whoever serves then has to know what was acknowledged, and the producer. One request at a time:
     * an Apache broker that recovers a log knows a producer's last batch only.
     */
    static void startToHammer() throws Exception {
        var producer = producers.computeIfAbsent(HAMMERED, key -> open(Map.of("linger.ms", "0", "batch.size", 2000, "max.in.flight.requests.per.connection", "1")));
        hammering = true;
        int before = acknowledged.size();
        hammer = new Thread(() -> {
            while (hammering) {
                // Few enough for DumpLogSegments to print, and for this process to hold while nobody serves.
                if (hammered % 2 == 0 || hammered - acknowledged.size() > 500) java.util.concurrent.locks.LockSupport.parkNanos(1_000_000);
                if (hammered - acknowledged.size() > 500) continue;
                int number = hammered++;
                var record = new ProducerRecord<>(HAMMERED, 0, Integer.toString(number), new byte[number % 300]);
                producer.send(record, (metadata, failure) -> {
                    if (failure == null) acknowledged.put(number, metadata.offset());
                });
            }
        });
        hammer.start();
        waitUntil("the hammer begins", () -> acknowledged.size() >= before + 200);
    }

    /** Every record is there once, in its place; nothing that was acknowledged is elsewhere. */
    static void settle() throws Exception {
        if (hammer == null) return;
        hammering = false;
        hammer.join();
        waitUntil("all is acknowledged", () -> acknowledged.size() == hammered);
        try (var consumer = new KafkaConsumer<String, byte[]>(Map.of("bootstrap.servers", bootstrap, "auto.offset.reset", "earliest"), new StringDeserializer(), new ByteArrayDeserializer())) {
            var partition = List.of(new TopicPartition(HAMMERED, 0));
            consumer.assign(partition);
            consumer.seekToBeginning(partition);
            int seen = 0;
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
            while (seen < hammered || consumer.position(partition.get(0)) < consumer.endOffsets(partition).get(partition.get(0))) {
                for (var record : consumer.poll(Duration.ofMillis(100))) {
                    if (!record.key().equals(Integer.toString(seen)) || record.value().length != seen % 300)
                        throw new IllegalStateException("at offset " + record.offset() + " is record " + record.key() + ", not " + seen);
                    if (acknowledged.get(seen) != record.offset())
                        throw new IllegalStateException("record " + seen + " was acknowledged at " + acknowledged.get(seen) + " and is at " + record.offset());
                    seen++;
                }
                if (System.nanoTime() > deadline) throw new IllegalStateException(seen + " of " + hammered + " records are there");
            }
        }
    }

    // --- Transactions while a broker goes

    static final int RECORDS_OF_TRANSACTION = 10;
    /** By then a coordinator has ended what is open, if it ever does. */
    static final long HANGING_SECONDS = 20;

    /** One transaction after the other, each open for most of its time, until told to settle: who goes leaves one open, as a rule. */
    static void startToTransact() throws Exception {
        var producer = open(Map.of("transactional.id", UNDECIDED, "transaction.timeout.ms", "10000", "linger.ms", "0"));
        producer.initTransactions();
        undecided = producer;
        transacting = true;
        int before = fates.size();
        transactor = new Thread(() -> {
            try {
                while (transacting) transactOnce(producer, fates.size());
            } catch (KafkaException gone) {
                // It was cut off: what became of the last transaction is for the next brokers to say.
            }
        });
        transactor.start();
        waitUntil("transactions", () -> fates.size() >= before + 4);
    }

    static void transactOnce(KafkaProducer<String, byte[]> producer, int number) {
        fates.put(number, Fate.OPEN);
        producer.beginTransaction();
        for (int i = 0; i < RECORDS_OF_TRANSACTION; i++) {
            producer.send(new ProducerRecord<>(UNDECIDED, 0, Integer.toString(number), new byte[i]), (metadata, failure) -> {
                if (failure == null) firstOffsets.merge(number, metadata.offset(), Math::min);
            });
            java.util.concurrent.locks.LockSupport.parkNanos(20_000_000);
        }
        // Nobody is there to be asked: it stays open.
        if (!transacting) return;
        boolean commits = number % 3 != 0;
        fates.put(number, commits ? Fate.ASKED_TO_COMMIT : Fate.ASKED_TO_ABORT);
        if (commits) producer.commitTransaction(); else producer.abortTransaction();
        fates.put(number, commits ? Fate.COMMITTED : Fate.ABORTED);
    }

    /** What is open stays open and unseen until a coordinator ends it; what is committed is seen as a whole. */
    static void settleTransactions(boolean full) throws Exception {
        if (undecided != null) {
            transacting = false;
            undecided.close(Duration.ZERO);
            transactor.join(TimeUnit.SECONDS.toMillis(LIMIT_SECONDS));
            if (transactor.isAlive()) throw new IllegalStateException("the transactional producer does not end");
            undecided = null;
        }
        var partition = new TopicPartition(UNDECIDED, 0);
        checkTransactions(partition, full);
        if (!full || fates.isEmpty()) return;
        if (random.nextBoolean()) {
            try (var producer = open(Map.of("transactional.id", UNDECIDED))) {
                producer.initTransactions();
            }
        }
        // Else the transaction's time is over soon.
        long began = System.nanoTime();
        while (stable(partition) < offset(partition, OffsetSpec.latest())) {
            long seconds = TimeUnit.NANOSECONDS.toSeconds(System.nanoTime() - began);
            if (seconds > LIMIT_SECONDS) throw new IllegalStateException("a transaction is not ended: stable to " + stable(partition));
            if (seconds > HANGING_SECONDS) abortHanging(partition);
            Thread.sleep(20);
        }
        fates.replaceAll((number, fate) -> fate == Fate.OPEN ? Fate.ABORTED : fate);
        checkTransactions(partition, true);
    }

    /**
     * Does what kafka-transactions.sh does. A coordinator of Apache's that ends a transaction before its broker's listener is open
     * may note the end without a marker: its log says CompleteAbort then, and the partition's has none, so it hangs (KIP-664).
     */
    static void abortHanging(TopicPartition partition) throws Exception {
        for (var producer : admin.describeProducers(List.of(partition)).partitionResult(partition).get().activeProducers()) {
            if (producer.currentTransactionStartOffset().isEmpty()) continue;
            var hanging = new AbortTransactionSpec(partition, producer.producerId(), (short) producer.producerEpoch(), producer.coordinatorEpoch().orElse(0));
            admin.abortTransaction(hanging).all().get();
            say("aborted a hanging transaction of " + partition);
        }
    }

    /** A coordinator ends by itself what was open for too long. */
    static void checkTransactions(TopicPartition partition, boolean hasCoordinator) throws Exception {
        if (fates.isEmpty()) return;
        long stable = stable(partition);
        fates.forEach((number, fate) -> {
            if (fate == Fate.OPEN && !hasCoordinator && firstOffsets.getOrDefault(number, Long.MAX_VALUE) < stable)
                throw new IllegalStateException("transaction " + number + " is open from " + firstOffsets.get(number) + " on, and " + stable + " is stable");
        });
        var seen = new HashMap<Integer, Integer>();
        try (var consumer = new KafkaConsumer<String, byte[]>(Map.of("bootstrap.servers", bootstrap, "isolation.level", "read_committed", "auto.offset.reset", "earliest"), new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.assign(List.of(partition));
            consumer.seekToBeginning(List.of(partition));
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
            while (consumer.position(partition) < stable) {
                for (var record : consumer.poll(Duration.ofMillis(100))) {
                    if (record.value().length != seen.merge(Integer.parseInt(record.key()), 1, Integer::sum) - 1)
                        throw new IllegalStateException("a record of transaction " + record.key() + " is missing before offset " + record.offset());
                }
                if (System.nanoTime() > deadline) throw new IllegalStateException("reading does not come to " + stable);
            }
        }
        fates.forEach((number, fate) -> {
            int count = seen.getOrDefault(number, 0);
            boolean isWhole = count == RECORDS_OF_TRANSACTION;
            boolean isRight = switch (fate) {
                case OPEN, ASKED_TO_ABORT, ABORTED -> count == 0;
                case ASKED_TO_COMMIT -> count == 0 || isWhole;
                // A commit is answered before its marker is written.
                case COMMITTED -> isWhole || (count == 0 && firstOffsets.get(number) >= stable);
            };
            if (!isRight) throw new IllegalStateException(count + " records are seen of transaction " + number + ", which is " + fate + "; " + stable + " is stable");
        });
    }

    static void waitUntil(String what, java.util.function.BooleanSupplier isSo) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
        while (!isSo.getAsBoolean()) {
            if (System.nanoTime() > deadline) throw new IllegalStateException("it did not come to this: " + what);
            Thread.sleep(5);
        }
    }

    // --- Reading

    /** Everything that a consumer can read, as one line a partition and isolation level. */
    static void read() throws Exception {
        for (var isolation : List.of("read_uncommitted", "read_committed")) {
            try (var consumer = new KafkaConsumer<byte[], byte[]>(Map.of("bootstrap.servers", bootstrap, "isolation.level", isolation, "auto.offset.reset", "earliest",
                "max.poll.records", "100000"), new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                var partitions = admin.describeTopics(admin.listTopics().names().get()).allTopicNames().get().values().stream()
                    .filter(topic -> !topic.name().equals(HAMMERED) && !topic.name().equals(UNDECIDED)).flatMap(topic -> topic.partitions().stream().map(one -> new TopicPartition(topic.name(), one.partition()))).collect(Collectors.toList());
                consumer.assign(partitions);
                consumer.seekToBeginning(partitions);
                var ends = consumer.endOffsets(partitions);
                var hashes = new TreeMap<String, long[]>();
                long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(LIMIT_SECONDS);
                while (!partitions.stream().allMatch(one -> consumer.position(one) >= ends.get(one))) {
                    for (var record : consumer.poll(Duration.ofMillis(100))) {
                        var hash = hashes.computeIfAbsent(record.topic() + "-" + record.partition(), key -> new long[2]);
                        hash[0]++;
                        hash[1] = 31 * hash[1] + Objects.hash(record.offset(), record.timestamp(), record.timestampType(), Arrays.hashCode(record.key()),
                            Arrays.hashCode(record.value()), record.headers().toString(), record.leaderEpoch());
                    }
                    if (System.nanoTime() > deadline) throw new IllegalStateException("reading did not come to the end");
                }
                hashes.forEach((partition, hash) -> say("read " + isolation + " " + partition + "=" + hash[0] + " records, " + hash[1]));
            }
        }
    }

    // --- Files

    static void dump(String[] arguments) throws IOException {
        var captured = new ByteArrayOutputStream();
        var before = System.out;
        System.setOut(new PrintStream(captured, true));
        try {
            org.apache.kafka.tools.DumpLogSegments.main(arguments);
        } finally {
            System.setOut(before);
        }
        captured.toString(StandardCharsets.UTF_8).lines().forEach(Takeover::say);
    }
}
