import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.AlterConfigOp.OpType;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.DescribeReplicaLogDirsResult.ReplicaLogDirInfo;
import org.apache.kafka.clients.admin.LogDirDescription;
import org.apache.kafka.clients.admin.NewPartitionReassignment;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.ReplicaInfo;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.TopicPartitionReplica;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Moves replicas between the log directories of the broker named by its first argument, and writes what it is answered, one line
 * each. The directories are the second and third argument; they are called "first" and "second" in what is written. The test runs
 * it against Gregor and against Apache Kafka and compares the lines.
 */
public final class LogDirectories {
    private static final ConfigResource BROKER = new ConfigResource(ConfigResource.Type.BROKER, "1");
    private static Admin admin;
    private static String first;
    private static String second;

    public static void main(String[] arguments) throws Exception {
        first = arguments[1];
        second = arguments[2];
        admin = Admin.create(Map.of("bootstrap.servers", arguments[0], "default.api.timeout.ms", 30_000));
        wishes();
        moves(arguments[0]);
        reassignments();
        cordons();
        admin.close();
    }

    private static void wishes() {
        tell("nothing is there", LogDirectories::described);
        for (int partition = 0; partition < 4; partition++) {
            int index = partition;
            tell("a wish for t-" + index, () -> move("t", index, index % 2 == 0 ? second : first));
        }
        tell("create t", () -> create("t", 4));
        tell("as wished", LogDirectories::described);
        tell("no such directory", () -> move("t", 0, "/nowhere"));
        tell("a name that is too long", () -> move("x".repeat(214), 0, first));
        tell("a partition that is not there", () -> move("t", 9, first));
    }

    private static void moves(String bootstrap) throws Exception {
        Map<String, Object> options = Map.of("bootstrap.servers", bootstrap);
        try (var producer = new KafkaProducer<>(options, new StringSerializer(), new StringSerializer())) {
            // More for each partition than is copied at once.
            for (int record = 0; record < 4_000; record++) {
                producer.send(new ProducerRecord<>("t", record % 4, "key", "value " + record + " " + "x".repeat(3_000)));
            }
            producer.flush();
        }
        tell("slowly", () -> configure("replica.alter.log.dirs.io.max.bytes.per.second", "1"));
        // A broker takes it up a little after the controller has it, and does not say when.
        Thread.sleep(2_000);
        tell("move t-0", () -> move("t", 0, first));
        tell("move it again", () -> move("t", 0, first));
        tell("it is on its way", () -> whereabouts(0));
        tell("back to where it is", () -> move("t", 0, second));
        tell("it is not on its way any more", () -> whereabouts(0));
        tell("not a rate", () -> configure("replica.alter.log.dirs.io.max.bytes.per.second", "-1"));
        tell("fast", () -> configure("replica.alter.log.dirs.io.max.bytes.per.second", "1000000000"));
        Thread.sleep(2_000);
        tell("move t-0 for good", () -> move("t", 0, first));
        tell("it is there", () -> moved(0, first));
        tell("all moves are done", LogDirectories::described);
    }

    private static void reassignments() {
        tell("the replicas that there are", () -> reassign("t", 0, List.of(1)));
        tell("none", () -> reassign("t", 0, List.of()));
        tell("twice", () -> reassign("t", 0, List.of(1, 1)));
        tell("a broker that is not there", () -> reassign("t", 0, List.of(1, 2)));
        tell("no such topic", () -> reassign("nope", 0, List.of(1)));
        tell("no such partition", () -> reassign("t", 9, List.of(1)));
        tell("take back", () -> {
            admin.alterPartitionReassignments(Map.of(new TopicPartition("t", 0), java.util.Optional.empty())).all().get();
            return "done";
        });
        tell("under way", () -> admin.listPartitionReassignments().reassignments().get().toString());
        tell("under way of one", () ->
            admin.listPartitionReassignments(Set.of(new TopicPartition("t", 0))).reassignments().get().toString());
    }

    private static void cordons() {
        tell("cordon what is not there", () -> configure("cordoned.log.dirs", first + ",/nowhere"));
        tell("cordon", () -> configure("cordoned.log.dirs", second));
        tell("it is cordoned", () -> cordoned(Set.of("second")));
        tell("move into it", () -> move("t", 1, second));
        tell("create u", () -> create("u", 4));
        tell("where u is", LogDirectories::described);
        tell("cordon all", () -> configure("cordoned.log.dirs", "*"));
        tell("all are cordoned", () -> cordoned(Set.of("first", "second")));
        tell("create v", () -> {
            // The controller hears of it a little later.
            for (int attempt = 0; ; attempt++) {
                try {
                    String created = create("v" + attempt, 1);
                    if (attempt == 300) return created;
                    Thread.sleep(100);
                } catch (ExecutionException refused) {
                    throw refused;
                }
            }
        });
        tell("create w by hand", () -> {
            admin.createTopics(List.of(new NewTopic("w", Map.of(0, List.of(1))))).all().get();
            return "done";
        });
        tell("no cordon", () -> configure("cordoned.log.dirs", ""));
        tell("none is cordoned", () -> cordoned(Set.of()));
    }

    private static String move(String topic, int partition, String directory) throws Exception {
        admin.alterReplicaLogDirs(Map.of(new TopicPartitionReplica(topic, partition, 1), directory)).all().get();
        return "done";
    }

    private static String create(String topic, int partitions) throws Exception {
        admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1))).all().get();
        // A replica is made soon after the topic.
        for (int attempt = 0; attempt < 300; attempt++) {
            int there = 0;
            for (LogDirDescription directory : admin.describeLogDirs(List.of(1)).allDescriptions().get().get(1).values()) {
                there += (int) directory.replicaInfos().keySet().stream().filter(one -> one.topic().equals(topic)).count();
            }
            if (there == partitions) return "done";
            Thread.sleep(100);
        }
        return "its replicas are not there";
    }

    private static String configure(String key, String value) throws Exception {
        AlterConfigOp operation = new AlterConfigOp(new ConfigEntry(key, value), OpType.SET);
        admin.incrementalAlterConfigs(Map.of(BROKER, List.of(operation))).all().get();
        return "done";
    }

    private static String reassign(String topic, int partition, List<Integer> replicas) throws Exception {
        var target = java.util.Optional.of(new NewPartitionReassignment(replicas));
        admin.alterPartitionReassignments(Map.of(new TopicPartition(topic, partition), target)).all().get();
        return "done";
    }

    /** Which partitions are in which directory. How large they are is each broker's own. */
    private static String described() throws Exception {
        Map<String, LogDirDescription> directories = admin.describeLogDirs(List.of(1)).allDescriptions().get().get(1);
        var told = new TreeMap<String, String>();
        for (var directory : directories.entrySet()) {
            var partitions = new TreeSet<String>();
            for (var replica : directory.getValue().replicaInfos().entrySet()) {
                ReplicaInfo info = replica.getValue();
                partitions.add(replica.getKey() + (info.isFuture() ? " on its way" : "") + " lag " + info.offsetLag());
            }
            boolean sized = directory.getValue().totalBytes().isPresent() && directory.getValue().usableBytes().isPresent();
            told.put(named(directory.getKey()), directory.getValue().error() + " " + partitions + " sized " + sized);
        }
        return told.toString();
    }

    private static ReplicaLogDirInfo info(int partition) throws Exception {
        var replica = new TopicPartitionReplica("t", partition, 1);
        return admin.describeReplicaLogDirs(List.of(replica)).all().get().get(replica);
    }

    private static String whereabouts(int partition) throws Exception {
        ReplicaLogDirInfo info = info(partition);
        return named(info.getCurrentReplicaLogDir()) + " to " + named(info.getFutureReplicaLogDir());
    }

    private static String moved(int partition, String directory) throws Exception {
        for (int attempt = 0; attempt < 600; attempt++) {
            ReplicaLogDirInfo info = info(partition);
            if (directory.equals(info.getCurrentReplicaLogDir()) && info.getFutureReplicaLogDir() == null) break;
            Thread.sleep(100);
        }
        return whereabouts(partition);
    }

    private static String cordoned(Set<String> expected) throws Exception {
        var cordoned = new TreeSet<String>();
        for (int attempt = 0; attempt < 300; attempt++) {
            cordoned.clear();
            for (var directory : admin.describeLogDirs(List.of(1)).allDescriptions().get().get(1).entrySet()) {
                if (directory.getValue().isCordoned()) cordoned.add(named(directory.getKey()));
            }
            if (cordoned.equals(expected)) break;
            Thread.sleep(100);
        }
        return cordoned.toString();
    }

    private static String named(String directory) {
        return directory == null ? "nowhere" : directory.equals(first) ? "first" : directory.equals(second) ? "second" : directory;
    }

    private static void tell(String what, Callable<String> question) {
        String answer;
        try {
            answer = question.call();
        } catch (ExecutionException refused) {
            answer = refused.getCause().getClass().getSimpleName() + ": " + refused.getCause().getMessage();
        } catch (Exception failed) {
            answer = failed.getClass().getSimpleName() + ": " + failed.getMessage();
        }
        System.out.println(what + ": " + answer.replace(first, "FIRST").replace(second, "SECOND"));
    }
}
