import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.AlterConfigOp.OpType;
import org.apache.kafka.clients.admin.Config;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.CreateTopicsOptions;
import org.apache.kafka.clients.admin.CreateTopicsResult;
import org.apache.kafka.clients.admin.DescribeClusterOptions;
import org.apache.kafka.clients.admin.DescribeConfigsOptions;
import org.apache.kafka.clients.admin.DescribeTopicsOptions;
import org.apache.kafka.clients.admin.FinalizedVersionRange;
import org.apache.kafka.clients.admin.ListTopicsOptions;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.QuorumInfo;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.common.ElectionType;
import org.apache.kafka.common.TopicCollection;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.config.ConfigResource;

/**
 * Administers the broker named by its argument and writes what it is answered, right and wrong requests alike, one line each. The
 * test runs it against Gregor and against Apache Kafka and compares the lines.
 */
public final class Administration {
    private static final ConfigResource TOPIC = new ConfigResource(ConfigResource.Type.TOPIC, "t");
    private static final ConfigResource BROKER = new ConfigResource(ConfigResource.Type.BROKER, "1");
    private static final ConfigResource BROKERS = new ConfigResource(ConfigResource.Type.BROKER, "");
    private static Admin admin;

    public static void main(String[] arguments) throws Exception {
        admin = Admin.create(Map.of("bootstrap.servers", arguments[0], "default.api.timeout.ms", 30_000));
        creation();
        description();
        growth();
        alteration();
        configuration();
        elections();
        deletion();
        admin.close();
    }

    private static void creation() {
        tell("create t", () -> {
            CreateTopicsResult result = create(topic("t", 3, 1).configs(Map.of("retention.ms", "5000")));
            return result.numPartitions("t").get() + " " + result.replicationFactor("t").get() + told(result.config("t").get());
        });
        tell("create with defaults", () -> {
            CreateTopicsResult result = create(new NewTopic("defaults", Optional.empty(), Optional.empty()));
            return result.numPartitions("defaults").get() + " " + result.replicationFactor("defaults").get();
        });
        tell("create by hand", () -> done(create(new NewTopic("manual", Map.of(0, List.of(1), 1, List.of(1))))));
        tell("create with a dot", () -> done(create(topic("dotted.name", 1, 1))));
        tell("create only to validate", () -> {
            admin.createTopics(List.of(topic("valid", 2, 1)), new CreateTopicsOptions().validateOnly(true)).all().get();
            return "done";
        });
        List<NewTopic> wrong = List.of(
            topic("t", 1, 1), topic("a b", 1, 1), topic("", 1, 1), topic("..", 1, 1), topic("x".repeat(250), 1, 1),
            topic("dotted_name", 1, 1), topic("__cluster_metadata", 1, 1), topic("w", 1, 3), topic("w", 0, 1),
            topic("w", -3, 1), topic("w", 1, 0), topic("w", 20_000, 1),
            topic("w", 1, 1).configs(Map.of("retention.ms", "soon")),
            topic("w", 1, 1).configs(Map.of("no.such.key", "1")),
            topic("w", 1, 1).configs(Map.of("cleanup.policy", "keep")),
            topic("w", 1, 1).configs(Map.of("segment.bytes", "1")),
            topic("w", 1, 1).configs(Map.of("min.compaction.lag.ms", "9", "max.compaction.lag.ms", "5")),
            new NewTopic("w", Map.of(0, List.of(9))), new NewTopic("w", Map.of(1, List.of(1))),
            new NewTopic("w", Map.of(0, List.of(1, 1))));
        for (int index = 0; index < wrong.size(); index++) {
            NewTopic topic = wrong.get(index);
            tell("create wrong " + index, () -> done(create(topic)));
        }
    }

    private static void description() throws Exception {
        eventually(() -> names().containsAll(Set.of("t", "defaults", "manual", "dotted.name")));
        tell("list", () -> names());
        tell("describe", () -> {
            DescribeTopicsOptions options = new DescribeTopicsOptions().includeAuthorizedOperations(true);
            TopicDescription topic = admin.describeTopics(List.of("t"), options).allTopicNames().get().get("t");
            StringBuilder text = new StringBuilder();
            topic.partitions().forEach(partition -> text.append(partition.partition()).append(" led by ")
                .append(partition.leader().id()).append(" of ").append(partition.replicas().size()).append(" in sync ")
                .append(partition.isr().size()).append(" eligible ").append(partition.elr()).append("; "));
            return text + " internal " + topic.isInternal() + " operations " + new TreeSet<>(topic.authorizedOperations());
        });
        tell("describe an unknown name", () -> admin.describeTopics(List.of("nope")).allTopicNames().get());
        tell("describe an unknown id", () ->
            admin.describeTopics(TopicCollection.ofTopicIds(List.of(new Uuid(5, 6)))).allTopicIds().get());
        tell("cluster", () -> {
            var options = new DescribeClusterOptions().includeAuthorizedOperations(true).includeFencedBrokers(true);
            var cluster = admin.describeCluster(options);
            return cluster.controller().get().id() + " of " + cluster.nodes().get().size() + " operations "
                + new TreeSet<>(cluster.authorizedOperations().get());
        });
        tell("quorum", () -> {
            QuorumInfo quorum = admin.describeMetadataQuorum().quorumInfo().get();
            return quorum.leaderId() + " voters " + quorum.voters().size() + " observers " + quorum.observers().size()
                + " nodes " + quorum.nodes().keySet();
        });
        tell("finalized", () -> {
            TreeMap<String, FinalizedVersionRange> features =
                new TreeMap<>(admin.describeFeatures().featureMetadata().get().finalizedFeatures());
            features.keySet().retainAll(Set.of("metadata.version"));
            return features;
        });
    }

    private static void growth() {
        for (int count : new int[] {5, 5, 2, -1, 100_000}) {
            tell("grow to " + count, () -> grow("t", NewPartitions.increaseTo(count)));
        }
        tell("grow an unknown topic", () -> grow("nope", NewPartitions.increaseTo(2)));
        tell("grow by too few", () -> grow("t", NewPartitions.increaseTo(7, List.of(List.of(1)))));
        tell("grow on no broker", () -> grow("t", NewPartitions.increaseTo(6, List.of(List.of(7)))));
    }

    private static void alteration() {
        alter("set", TOPIC, "retention.ms", "7", OpType.SET);
        alter("set wrong", TOPIC, "retention.ms", "x", OpType.SET);
        alter("set unknown", TOPIC, "no.such.key", "x", OpType.SET);
        alter("set to nothing", TOPIC, "retention.ms", null, OpType.SET);
        alter("append", TOPIC, "cleanup.policy", "compact", OpType.APPEND);
        alter("append to a number", TOPIC, "retention.ms", "1", OpType.APPEND);
        alter("subtract", TOPIC, "cleanup.policy", "delete", OpType.SUBTRACT);
        alter("delete", TOPIC, "retention.ms", "", OpType.DELETE);
        alter("unknown topic", new ConfigResource(ConfigResource.Type.TOPIC, "nope"), "retention.ms", "7", OpType.SET);
        alter("every topic", new ConfigResource(ConfigResource.Type.TOPIC, ""), "retention.ms", "7", OpType.SET);
        alter("broker", BROKER, "log.retention.ms", "700", OpType.SET);
        alter("brokers", BROKERS, "log.retention.ms", "800", OpType.SET);
        alter("broker needs a restart", BROKER, "node.id", "8", OpType.SET);
        alter("broker wrong", BROKER, "log.retention.ms", "x", OpType.SET);
        alter("broker unknown", BROKER, "custom.key", "x", OpType.SET);
        alter("number in sync of a broker", BROKER, "min.insync.replicas", "2", OpType.SET);
        alter("number in sync of all, removed", BROKERS, "min.insync.replicas", "", OpType.DELETE);
        alter("number in sync of all", BROKERS, "min.insync.replicas", "2", OpType.SET);
        ConfigResource group = new ConfigResource(ConfigResource.Type.GROUP, "g");
        alter("group", group, "consumer.session.timeout.ms", "46000", OpType.SET);
        alter("group unknown", group, "no.such.key", "1", OpType.SET);
        alter("no group", new ConfigResource(ConfigResource.Type.GROUP, ""), "consumer.session.timeout.ms", "46000", OpType.SET);
    }

    private static void configuration() throws Exception {
        eventually(() -> configs(TOPIC).contains("log.retention.ms=800"));
        tell("configs of a topic", () -> configs(TOPIC));
        tell("configs of all brokers", () -> configs(BROKERS));
        tell("configs of a broker", () -> configs(BROKER));
        tell("configs of a group", () -> configs(new ConfigResource(ConfigResource.Type.GROUP, "g")));
        tell("configs of a subscription", () -> configs(new ConfigResource(ConfigResource.Type.CLIENT_METRICS, "m")));
        tell("configs of no topic", () -> configs(new ConfigResource(ConfigResource.Type.TOPIC, "nope")));
        tell("configs of no group", () -> configs(new ConfigResource(ConfigResource.Type.GROUP, "")));
        tell("resources", () -> {
            TreeSet<String> resources = new TreeSet<>();
            admin.listConfigResources().all().get().forEach(resource -> resources.add(resource.toString()));
            return resources;
        });
    }

    private static void elections() {
        tell("elect", () -> elect("t"));
        tell("elect for an unknown topic", () -> elect("nope"));
        tell("unregister an unknown broker", () -> {
            admin.unregisterBroker(77).all().get();
            return "done";
        });
    }

    private static void deletion() {
        for (int time = 1; time <= 2; time++) {
            tell("delete, time " + time, () -> {
                admin.deleteTopics(List.of("t")).all().get();
                return "done";
            });
        }
        tell("delete by an unknown id", () -> {
            admin.deleteTopics(TopicCollection.ofTopicIds(List.of(new Uuid(5, 6)))).all().get();
            return "done";
        });
    }

    private static NewTopic topic(String name, int partitions, int replicationFactor) {
        return new NewTopic(name, partitions, (short) replicationFactor);
    }

    private static CreateTopicsResult create(NewTopic topic) throws Exception {
        CreateTopicsResult result = admin.createTopics(List.of(topic));
        result.all().get();
        return result;
    }

    private static String done(Object ignored) {
        return "done";
    }

    private static String grow(String topic, NewPartitions partitions) throws Exception {
        admin.createPartitions(Map.of(topic, partitions)).all().get();
        return "done";
    }

    private static Object elect(String topic) throws Exception {
        Set<TopicPartition> partitions = Set.of(new TopicPartition(topic, 0));
        Map<TopicPartition, Optional<Throwable>> results =
            admin.electLeaders(ElectionType.PREFERRED, partitions).partitions().get();
        return results;
    }

    private static TreeSet<String> names() throws Exception {
        return new TreeSet<>(admin.listTopics(new ListTopicsOptions().listInternal(true)).names().get());
    }

    private static void alter(String what, ConfigResource resource, String key, String value, OpType operation) {
        tell("alter: " + what, () -> {
            AlterConfigOp change = new AlterConfigOp(new ConfigEntry(key, value), operation);
            admin.incrementalAlterConfigs(Map.of(resource, List.of(change))).all().get();
            return "done";
        });
    }

    private static String configs(ConfigResource resource) throws Exception {
        DescribeConfigsOptions options = new DescribeConfigsOptions().includeSynonyms(true).includeDocumentation(true);
        return told(admin.describeConfigs(List.of(resource), options).all().get().get(resource));
    }

    private static String told(Config config) {
        List<ConfigEntry> entries = new ArrayList<>(config.entries());
        entries.sort(Comparator.comparing(ConfigEntry::name));
        StringBuilder text = new StringBuilder();
        for (ConfigEntry entry : entries) {
            text.append("\n  ").append(entry.name()).append('=').append(entry.value()).append(' ').append(entry.source())
                .append(entry.isReadOnly() ? " read-only" : "").append(entry.isSensitive() ? " sensitive" : "")
                .append(' ').append(entry.type()).append(" of");
            entry.synonyms().forEach(synonym ->
                text.append(' ').append(synonym.name()).append('=').append(synonym.value()).append('@').append(synonym.source()));
        }
        return text.toString();
    }

    private static void tell(String what, Callable<Object> action) {
        try {
            System.out.println(what + ": " + action.call());
        } catch (ExecutionException error) {
            Throwable cause = error.getCause();
            System.out.println(what + ": " + cause.getClass().getSimpleName() + ": " + cause.getMessage());
        } catch (Exception error) {
            System.out.println(what + ": " + error);
        }
    }

    private static void eventually(Callable<Boolean> condition) throws Exception {
        long deadline = System.nanoTime() + 30_000_000_000L;
        while (!condition.call()) {
            if (System.nanoTime() > deadline) {
                throw new IllegalStateException("what was changed never showed");
            }
            Thread.sleep(20);
        }
    }
}
