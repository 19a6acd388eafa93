//! `server.properties` as a typed configuration of a node.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use gregor_types::BrokerId;

use crate::{
    Properties,
    cordons::cordoned,
    key::{ConfigKey, Support, Update},
    listener::{Listener, SecurityProtocol},
    listener_keys::{Values, check_names, of_listener, prefixed_broker_key},
    quorum,
    reader::{Reader, controller_protocol, parse_number},
    value::{ConfigError, split_list},
};

/// The roles of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessRoles {
    /// Holds partitions and serves clients.
    pub broker: bool,
    /// Votes in the quorum.
    pub controller: bool,
}

/// A member of a static quorum, from `controller.quorum.voters`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumVoter {
    /// Its node id.
    pub id: BrokerId,
    /// Its host.
    pub host: String,
    /// The port of its controller listener.
    pub port: u16,
}

/// Something in a configuration that does nothing here; shown at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// A key of Apache Kafka without effect in this release, and why.
    Ignored(&'static str, &'static str),
    /// A key that Apache Kafka does not have either.
    Unknown(String),
}

/// A node's configuration. Fields are named after Apache's keys; times in milliseconds, sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented in the table, under the key of the same name")]
pub struct BrokerConfig {
    pub node_id: BrokerId,
    pub process_roles: ProcessRoles,
    pub broker_rack: Option<String>,
    /// All listeners, those of the controller included.
    pub listeners: Vec<Listener>,
    /// The listener that brokers use among themselves, by name.
    pub inter_broker_listener_name: String,
    pub controller_listener_names: Vec<String>,
    /// How the first of them speaks, here and on every other controller.
    pub controller_listener_protocol: SecurityProtocol,
    pub controller_quorum_voters: Vec<QuorumVoter>,
    pub controller_quorum_bootstrap_servers: Vec<(String, u16)>,
    pub controller_quorum_election_timeout_ms: i64,
    pub controller_quorum_election_backoff_max_ms: i64,
    pub controller_quorum_fetch_timeout_ms: i64,
    pub controller_quorum_retry_backoff_ms: i64,
    pub controller_quorum_request_timeout_ms: i64,
    pub controller_quorum_auto_join_enable: bool,
    pub controller_quorum_fetch_max_bytes: u32,
    pub controller_quorum_fetch_snapshot_max_bytes: u32,
    pub log_dirs: Vec<PathBuf>,
    /// Those of `log_dirs` that get no new replicas.
    pub cordoned_log_dirs: Vec<PathBuf>,
    pub log_dir_failure_timeout_ms: i64,
    pub metadata_log_dir: PathBuf,
    pub metadata_log_max_record_bytes_between_snapshots: i64,
    pub metadata_log_max_snapshot_interval_ms: i64,
    pub metadata_log_segment_bytes: i32,
    pub metadata_log_segment_ms: i64,
    pub metadata_max_idle_interval_ms: i64,
    pub metadata_max_retention_bytes: i64,
    pub metadata_max_retention_ms: i64,
    pub auto_create_topics_enable: bool,
    pub auto_leader_rebalance_enable: bool,
    pub leader_imbalance_check_interval_seconds: i64,
    pub unclean_leader_election_interval_ms: i64,
    pub delete_topic_enable: bool,
    pub num_partitions: i32,
    pub num_recovery_threads_per_data_dir: usize,
    pub default_replication_factor: i16,
    pub broker_heartbeat_interval_ms: i64,
    pub broker_session_timeout_ms: i64,
    pub initial_broker_registration_timeout_ms: i64,
    pub controlled_shutdown_enable: bool,
    pub connections_max_idle_ms: i64,
    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    pub max_connections_per_ip_overrides: BTreeMap<String, usize>,
    pub socket_listen_backlog_size: i32,
    pub socket_request_max_bytes: usize,
    pub socket_receive_buffer_bytes: Option<usize>,
    pub socket_send_buffer_bytes: Option<usize>,
    /// `None` for a quarter of the memory limit.
    pub queued_max_request_bytes: Option<usize>,
    pub fetch_max_bytes: i32,
    pub max_incremental_fetch_session_cache_slots: usize,
    pub max_request_partition_size_limit: i32,
    pub group_initial_rebalance_delay_ms: i64,
    pub group_min_session_timeout_ms: i64,
    pub group_max_session_timeout_ms: i64,
    pub group_max_size: usize,
    pub offset_metadata_max_bytes: usize,
    pub offsets_commit_timeout_ms: i64,
    pub offsets_retention_minutes: i64,
    pub offsets_retention_check_interval_ms: i64,
    pub offsets_topic_num_partitions: i32,
    pub offsets_topic_replication_factor: i16,
    pub offsets_topic_segment_bytes: i32,
    pub log_flush_offset_checkpoint_interval_ms: i64,
    pub log_flush_start_offset_checkpoint_interval_ms: i64,
    pub log_retention_check_interval_ms: i64,
    pub replica_high_watermark_checkpoint_interval_ms: i64,
    pub replica_lag_time_max_ms: i64,
    pub num_replica_fetchers: u32,
    pub replica_fetch_backoff_ms: i64,
    pub replica_fetch_max_bytes: i32,
    pub replica_fetch_min_bytes: i32,
    pub replica_fetch_response_max_bytes: i32,
    pub replica_fetch_wait_max_ms: i32,
    pub replica_socket_timeout_ms: i32,
    /// At least 1.
    pub num_replica_alter_log_dirs_threads: usize,
    pub alter_log_dirs_replication_quota_window_num: usize,
    pub alter_log_dirs_replication_quota_window_size_seconds: u32,
    pub producer_id_expiration_ms: i64,
    pub request_timeout_ms: i64,
    values: Values,
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ignored(key, why) => write!(formatter, "{key} has no effect: {why}"),
            Self::Unknown(key) => write!(formatter, "{key} is not a key of Apache Kafka and has no effect"),
        }
    }
}

/// Keys outside the table, by prefix, that guard access or data.
const GUARDED_PREFIXES: [(&str, &str); 5] = [
    ("listener.name.", "Of a listener's own keys, only those that begin with ssl. are served yet."),
    ("super.users", "Authorization is not served yet: every client may do everything."),
    ("allow.everyone.if.no.acl.found", "Authorization is not served yet: every client may do everything."),
    ("zookeeper.", "ZooKeeper is gone since Apache Kafka 4.0; migrate to KRaft with Kafka 3.9 first."),
    ("inter.broker.protocol.version", "The level of a cluster is its metadata.version since Apache Kafka 3.3."),
];

impl BrokerConfig {
    /// Reads a node's configuration. What guards access, data or durability and is not served is an error that names the key;
    /// what merely has no effect is a warning.
    pub fn from_properties(properties: &Properties) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut warnings = Vec::new();
        let mut values = BTreeMap::new();
        for (name, value) in properties.iter() {
            let Some(key) = prefixed_broker_key(name) else {
                if let Some((_, why)) = GUARDED_PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)) {
                    return Err(not_served(name, value, why, "unset"));
                }
                warnings.push(Warning::Unknown(name.to_owned()));
                continue;
            };
            key.check(value)?;
            let is_default = key.default.unwrap_or_default().eq_ignore_ascii_case(value.trim());
            match key.support {
                Support::Refused if !is_default => {
                    let default = key.default.filter(|default| !default.is_empty()).unwrap_or("unset");
                    return Err(not_served(name, &key.shown(value), key.documentation, default));
                }
                Support::Ignored if !is_default => warnings.push(Warning::Ignored(key.name, key.documentation)),
                _ => {}
            }
            values.insert(name.to_owned(), value.trim().to_owned());
        }
        let config = Self::from_values(values)?;
        check_names(&config.values, &config.listeners, &config.controller_listener_names)?;
        Ok((config, warnings))
    }

    /// This configuration with what was set at run time laid over it: `dynamic` looks a key up in the broker's own dynamic
    /// configuration, then in the cluster's default. Keys that cannot change at run time, and values that do not parse, count
    /// as absent.
    pub fn with_dynamic<'a>(&self, dynamic: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ConfigError> {
        let mut values = self.values.0.clone();
        for (name, value) in dynamic {
            let changes = |key: &&ConfigKey| key.update != Update::ReadOnly && key.support == Support::Served;
            if let Some(key) = prefixed_broker_key(name).filter(changes)
                && key.check(value).is_ok()
            {
                values.insert(name.to_owned(), value.trim().to_owned());
            }
        }
        Self::from_values(values)
    }

    /// The text that a key was set to, if it was set.
    pub fn set_value(&self, key: &str) -> Option<&str> {
        self.values.0.get(key).map(String::as_str)
    }

    /// The names of the keys that were set, those under a listener's prefix among them.
    pub fn set_keys(&self) -> impl Iterator<Item = &str> {
        self.values.0.keys().map(String::as_str)
    }

    /// The text that a key was set to for one listener, under its prefix or in common.
    pub fn listener_value(&self, listener: &str, key: &str) -> Option<&str> {
        of_listener(&self.values, listener, key)
    }

    /// The listener of this name.
    pub fn listener(&self, name: &str) -> Option<&Listener> {
        self.listeners.iter().find(|listener| listener.bind.name == name)
    }

    /// This node's controller listeners, in the order of `controller.listener.names` and not of `listeners`: by the first name the quorum
    /// reaches a controller. None of a node that is no controller.
    pub fn controller_listeners(&self) -> impl Iterator<Item = &Listener> {
        self.controller_listener_names.iter().filter_map(|name| self.listener(name))
    }

    fn from_values(values: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let read = Reader { values: &values };
        let node_id = match (read.set("node.id"), read.set("broker.id")) {
            (Some(node), Some(broker)) if node != broker => {
                return Err(ConfigError::Contradiction(format!(
                    "node.id={node} and broker.id={broker} differ; keep node.id"
                )));
            }
            (Some(id), _) | (None, Some(id)) => parse_number("node.id", id)?,
            (None, None) => return Err(ConfigError::Missing("node.id")),
        };
        let roles = read.roles()?;
        let controller_listener_names: Vec<String> =
            split_list(read.text("controller.listener.names")).map(str::to_ascii_uppercase).collect();
        if controller_listener_names.is_empty() {
            return Err(ConfigError::Missing("controller.listener.names"));
        }
        let protocols = read.protocols(&controller_listener_names)?;
        let listeners = read.listeners(roles, &controller_listener_names, &protocols)?;
        let controller_listener_protocol = controller_protocol(&controller_listener_names, &protocols)?;
        let inter_broker_listener_name = read.inter_broker_listener(roles, &listeners)?;
        let log_dirs: Vec<PathBuf> =
            split_list(read.set("log.dirs").unwrap_or_else(|| read.text("log.dir"))).map(PathBuf::from).collect();
        let first_dir = log_dirs.first().cloned().ok_or(ConfigError::Missing("log.dirs"))?;
        let voters = quorum::voters(read.text("controller.quorum.voters"))?;
        let bootstrap = quorum::bootstrap_servers(read.text("controller.quorum.bootstrap.servers"))?;
        if voters.is_empty() && bootstrap.is_empty() {
            return Err(ConfigError::Contradiction(
                "the quorum cannot be found: set controller.quorum.bootstrap.servers=host:port (or \
                 controller.quorum.voters=id@host:port for a static quorum)"
                    .to_owned(),
            ));
        }
        if roles.controller && !voters.is_empty() && voters.iter().all(|voter| voter.id.value() != node_id) {
            return Err(ConfigError::Contradiction(format!(
                "node {node_id} is a controller and is not among controller.quorum.voters"
            )));
        }
        if !roles.controller && voters.iter().any(|voter| voter.id.value() == node_id) {
            return Err(ConfigError::Contradiction(format!(
                "node {node_id} is no controller (process.roles=broker) and must not be among controller.quorum.voters"
            )));
        }
        let cordoned_log_dirs = cordoned(&log_dirs, read.text("cordoned.log.dirs"))?;
        let move_threads = match read.set("num.replica.alter.log.dirs.threads") {
            Some(_) => read.number::<usize>("num.replica.alter.log.dirs.threads")?.max(1),
            None => log_dirs.len(),
        };
        let buffer = |key| read.number::<i64>(key).map(|bytes| usize::try_from(bytes).ok());
        Ok(Self {
            node_id: BrokerId(node_id),
            process_roles: roles,
            broker_rack: read.set("broker.rack").map(str::to_owned),
            inter_broker_listener_name,
            listeners,
            controller_listener_names,
            controller_listener_protocol,
            controller_quorum_voters: voters,
            controller_quorum_bootstrap_servers: bootstrap,
            controller_quorum_election_timeout_ms: read.number("controller.quorum.election.timeout.ms")?,
            controller_quorum_election_backoff_max_ms: read.number("controller.quorum.election.backoff.max.ms")?,
            controller_quorum_fetch_timeout_ms: read.number("controller.quorum.fetch.timeout.ms")?,
            controller_quorum_retry_backoff_ms: read.number("controller.quorum.retry.backoff.ms")?,
            controller_quorum_request_timeout_ms: read.number("controller.quorum.request.timeout.ms")?,
            controller_quorum_auto_join_enable: read.boolean("controller.quorum.auto.join.enable"),
            controller_quorum_fetch_max_bytes: read.number("controller.quorum.fetch.max.bytes")?,
            controller_quorum_fetch_snapshot_max_bytes: read.number("controller.quorum.fetch.snapshot.max.bytes")?,
            metadata_log_dir: read.set("metadata.log.dir").map_or(first_dir, PathBuf::from),
            log_dirs,
            cordoned_log_dirs,
            log_dir_failure_timeout_ms: read.number("log.dir.failure.timeout.ms")?,
            metadata_log_max_record_bytes_between_snapshots: read
                .number("metadata.log.max.record.bytes.between.snapshots")?,
            metadata_log_max_snapshot_interval_ms: read.number("metadata.log.max.snapshot.interval.ms")?,
            metadata_log_segment_bytes: read.number("metadata.log.segment.bytes")?,
            metadata_log_segment_ms: read.number("metadata.log.segment.ms")?,
            metadata_max_idle_interval_ms: read.number("metadata.max.idle.interval.ms")?,
            metadata_max_retention_bytes: read.number("metadata.max.retention.bytes")?,
            metadata_max_retention_ms: read.number("metadata.max.retention.ms")?,
            auto_create_topics_enable: read.boolean("auto.create.topics.enable"),
            auto_leader_rebalance_enable: read.boolean("auto.leader.rebalance.enable"),
            leader_imbalance_check_interval_seconds: read.number("leader.imbalance.check.interval.seconds")?,
            unclean_leader_election_interval_ms: read.number("unclean.leader.election.interval.ms")?,
            delete_topic_enable: read.boolean("delete.topic.enable"),
            num_partitions: read.number("num.partitions")?,
            num_recovery_threads_per_data_dir: read.number("num.recovery.threads.per.data.dir")?,
            default_replication_factor: read.number("default.replication.factor")?,
            broker_heartbeat_interval_ms: read.number("broker.heartbeat.interval.ms")?,
            broker_session_timeout_ms: read.number("broker.session.timeout.ms")?,
            initial_broker_registration_timeout_ms: read.number("initial.broker.registration.timeout.ms")?,
            controlled_shutdown_enable: read.boolean("controlled.shutdown.enable"),
            connections_max_idle_ms: read.number("connections.max.idle.ms")?,
            max_connections: read.number("max.connections")?,
            max_connections_per_ip: read.number("max.connections.per.ip")?,
            max_connections_per_ip_overrides: read.connection_overrides()?,
            socket_listen_backlog_size: read.number("socket.listen.backlog.size")?,
            socket_request_max_bytes: read.number("socket.request.max.bytes")?,
            socket_receive_buffer_bytes: buffer("socket.receive.buffer.bytes")?,
            socket_send_buffer_bytes: buffer("socket.send.buffer.bytes")?,
            queued_max_request_bytes: buffer("queued.max.request.bytes")?,
            fetch_max_bytes: read.number("fetch.max.bytes")?,
            max_incremental_fetch_session_cache_slots: read.number("max.incremental.fetch.session.cache.slots")?,
            max_request_partition_size_limit: read.number("max.request.partition.size.limit")?,
            group_initial_rebalance_delay_ms: read.number("group.initial.rebalance.delay.ms")?,
            group_min_session_timeout_ms: read.number("group.min.session.timeout.ms")?,
            group_max_session_timeout_ms: read.number("group.max.session.timeout.ms")?,
            group_max_size: read.number("group.max.size")?,
            offset_metadata_max_bytes: read.number("offset.metadata.max.bytes")?,
            offsets_commit_timeout_ms: read.number("offsets.commit.timeout.ms")?,
            offsets_retention_minutes: read.number("offsets.retention.minutes")?,
            offsets_retention_check_interval_ms: read.number("offsets.retention.check.interval.ms")?,
            offsets_topic_num_partitions: read.number("offsets.topic.num.partitions")?,
            offsets_topic_replication_factor: read.number("offsets.topic.replication.factor")?,
            offsets_topic_segment_bytes: read.number("offsets.topic.segment.bytes")?,
            log_flush_offset_checkpoint_interval_ms: read.number("log.flush.offset.checkpoint.interval.ms")?,
            log_flush_start_offset_checkpoint_interval_ms: read
                .number("log.flush.start.offset.checkpoint.interval.ms")?,
            log_retention_check_interval_ms: read.number("log.retention.check.interval.ms")?,
            replica_high_watermark_checkpoint_interval_ms: read
                .number("replica.high.watermark.checkpoint.interval.ms")?,
            replica_lag_time_max_ms: read.number("replica.lag.time.max.ms")?,
            num_replica_fetchers: read.number("num.replica.fetchers")?,
            replica_fetch_backoff_ms: read.number("replica.fetch.backoff.ms")?,
            replica_fetch_max_bytes: read.number("replica.fetch.max.bytes")?,
            replica_fetch_min_bytes: read.number("replica.fetch.min.bytes")?,
            replica_fetch_response_max_bytes: read.number("replica.fetch.response.max.bytes")?,
            replica_fetch_wait_max_ms: read.number("replica.fetch.wait.max.ms")?,
            replica_socket_timeout_ms: read.number("replica.socket.timeout.ms")?,
            num_replica_alter_log_dirs_threads: move_threads,
            alter_log_dirs_replication_quota_window_num: read.number("alter.log.dirs.replication.quota.window.num")?,
            alter_log_dirs_replication_quota_window_size_seconds: read
                .number("alter.log.dirs.replication.quota.window.size.seconds")?,
            producer_id_expiration_ms: read.number("producer.id.expiration.ms")?,
            request_timeout_ms: read.number("request.timeout.ms")?,
            values: Values(values),
        })
    }
}

fn not_served(key: &str, value: &str, why: &'static str, default: &'static str) -> ConfigError {
    ConfigError::NotServed { key: key.to_owned(), value: value.chars().take(256).collect(), why, default }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "node.id=7\nprocess.roles=broker,controller\ncontroller.listener.names=CONTROLLER\n\
        listeners=PLAINTEXT://:9092,CONTROLLER://localhost:9093\nlog.dirs=/a, /b\ncontroller.quorum.bootstrap.servers=localhost:9093\n";

    fn parse(extra: &str) -> Result<(BrokerConfig, Vec<Warning>), ConfigError> {
        BrokerConfig::from_properties(&Properties::parse(&format!("{BASE}{extra}")).unwrap())
    }

    fn refusal(extra: &str) -> String {
        parse(extra).unwrap_err().to_string()
    }

    #[test]
    fn a_combined_node_reads_as_apache_reads_it() {
        let (config, warnings) =
            parse("advertised.listeners=PLAINTEXT://kafka.example:19092\nbroker.rack=eu-1a\n").unwrap();
        assert_eq!(warnings, []);
        assert_eq!(config.node_id, BrokerId(7));
        assert_eq!(config.log_dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(config.metadata_log_dir, PathBuf::from("/a"));
        assert_eq!(config.num_replica_alter_log_dirs_threads, config.log_dirs.len());
        assert_eq!(config.inter_broker_listener_name, "PLAINTEXT");
        assert_eq!(config.listener("PLAINTEXT").unwrap().advertised.to_string(), "PLAINTEXT://kafka.example:19092");
        assert!(config.listener("CONTROLLER").unwrap().controller);
        assert_eq!(config.message_max_bytes_text(), "1048588");
    }

    #[test]
    fn a_quorum_of_no_settings_keeps_apaches_times() {
        let config = parse("").unwrap().0;
        assert_eq!(config.controller_quorum_election_timeout_ms, 1_000);
        assert_eq!(config.controller_quorum_fetch_timeout_ms, 2_000);
        assert_eq!(config.controller_quorum_election_backoff_max_ms, 1_000);
        assert_eq!(config.controller_quorum_request_timeout_ms, 2_000);
        assert_eq!(config.controller_quorum_retry_backoff_ms, 20);
        assert_eq!(config.controller_quorum_fetch_max_bytes, 1 << 20);
        assert!(!config.controller_quorum_auto_join_enable);
    }

    impl BrokerConfig {
        fn message_max_bytes_text(&self) -> String {
            crate::TopicConfig::effective(self, "max.message.bytes", &|_| None).unwrap()
        }
    }

    #[test]
    fn what_guards_access_data_or_durability_and_is_not_served_stops_the_start_by_name() {
        for (extra, name) in [
            ("authorizer.class.name=com.example.Authorizer\n", "authorizer.class.name"),
            ("super.users=User:admin\n", "super.users"),
            ("ssl.engine.factory.class=com.example.Factory\n", "ssl.engine.factory.class"),
            ("sasl.enabled.mechanisms=PLAIN\n", "sasl.enabled.mechanisms"),
            ("listener.name.plaintext.sasl.enabled.mechanisms=PLAIN\n", "listener.name."),
            ("remote.log.storage.system.enable=true\n", "remote.log.storage.system.enable"),
            ("create.topic.policy.class.name=com.example.Policy\n", "create.topic.policy.class.name"),
            ("listener.security.protocol.map=PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT\n", "SASL is not served yet"),
            ("listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:SASL_SSL\n", "CONTROLLER:SaslSsl"),
            ("listener.name.plaintext.ssl.provider=X\n", "listener.name.plaintext.ssl.provider"),
            ("zookeeper.connect=zk:2181\n", "zookeeper.connect"),
        ] {
            assert!(refusal(extra).contains(name), "{extra}: {}", refusal(extra));
        }
    }

    #[test]
    fn secrets_stay_out_of_errors() {
        let named = "listener.name.plaintext.ssl.client.auth=hunter2\nssl.key.password=hunter3\n";
        assert!(!refusal(named).contains("hunter3"));
        assert!(!format!("{:?}", parse("ssl.key.password=hunter2\n").unwrap().0).contains("hunter2"));
    }

    #[test]
    fn keys_without_effect_are_named_in_warnings_unless_they_have_their_default() {
        let (_, warnings) = parse("num.io.threads=99\nnum.network.threads=3\nmy.own.key=1\n").unwrap();
        assert_eq!(
            warnings,
            [
                Warning::Unknown("my.own.key".to_owned()),
                Warning::Ignored("num.io.threads", "Gregor has no such thread pool."),
            ]
        );
    }

    #[test]
    fn contradictions_are_said_in_words() {
        for (extra, words) in [
            ("broker.id=8\n", "differ"),
            ("advertised.listeners=OTHER://x:1\n", "OTHER"),
            ("listeners=PLAINTEXT://:9092\n", "controller.listener.names"),
            ("listeners=CONTROLLER://:9093\n", "no listener for clients"),
            ("controller.quorum.voters=1@a:1\n", "not among controller.quorum.voters"),
            (
                "process.roles=broker\nlisteners=PLAINTEXT://:9092\ncontroller.quorum.voters=7@a:1\n",
                "must not be among controller.quorum.voters",
            ),
            ("inter.broker.listener.name=CONTROLLER\n", "inter.broker.listener.name"),
            ("inter.broker.listener.name=PLAINTEXT\nsecurity.inter.broker.protocol=PLAINTEXT\n", "keep one"),
            ("security.inter.broker.protocol=SSL\n", "asks for a listener of that name"),
            ("listeners=SSL://:9092,CONTROLLER://:9093\n", "each controller listener needs one"),
            ("listener.name.other.ssl.client.auth=required\n", "listener.name.other.ssl.client.auth"),
            ("listeners=PLAINTEXT:9092\n", "NAME://host:port"),
            ("num.partitions=0\n", "at least 1"),
        ] {
            assert!(refusal(extra).contains(words), "{extra}: {}", refusal(extra));
        }
    }

    #[test]
    fn a_listener_has_tls_keys_of_its_own_and_the_common_ones() {
        let (config, warnings) = parse(
            "listener.security.protocol.map=PLAINTEXT:SSL,CONTROLLER:PLAINTEXT\nssl.client.auth=required\n\
             ssl.keystore.type=PEM\nlistener.name.plaintext.ssl.client.auth=requested\n",
        )
        .unwrap();
        assert_eq!(warnings, []);
        assert_eq!(config.listener("PLAINTEXT").unwrap().protocol, SecurityProtocol::Ssl);
        let dynamic = [("listener.name.plaintext.ssl.keystore.type", "JKS")];
        let changed = config.with_dynamic(dynamic).unwrap();
        for (config, store) in [(config, "PEM"), (changed, "JKS")] {
            assert_eq!(config.listener_value("PLAINTEXT", "ssl.client.auth"), Some("requested"));
            assert_eq!(config.listener_value("OTHER", "ssl.client.auth"), Some("required"));
            assert_eq!(config.listener_value("PLAINTEXT", "ssl.keystore.type"), Some(store));
        }
        assert!(refusal("listener.name.PLAINTEXT.ssl.client.auth=none\n").contains("in lower case"));
    }

    #[test]
    fn controllers_are_reached_as_the_first_of_their_listeners_speaks() {
        let protocol = |extra: &str| parse(extra).unwrap().0.controller_listener_protocol;
        assert_eq!(protocol(""), SecurityProtocol::Plaintext);
        let map = "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:SSL,OTHER:PLAINTEXT\n";
        assert_eq!(protocol(&format!("{map}controller.listener.names=CONTROLLER,OTHER\n")), SecurityProtocol::Ssl);
        // A broker has no such listener, and dials those of others.
        let broker = "process.roles=broker\nlisteners=PLAINTEXT://:9092\nlistener.name.controller.ssl.key.password=x\n";
        let (config, _) = parse(&format!("{map}{broker}")).unwrap();
        assert_eq!(config.controller_listener_protocol, SecurityProtocol::Ssl);
        assert_eq!(config.listener_value("CONTROLLER", "ssl.key.password"), Some("x"));
        assert!(refusal("listener.security.protocol.map=PLAINTEXT:PLAINTEXT\n").contains("listener CONTROLLER"));
    }

    #[test]
    fn controller_listeners_come_in_the_order_of_their_names() {
        let names = |extra: &str| {
            let (config, _) = parse(extra).unwrap();
            config.controller_listeners().map(|listener| listener.bind.name.clone()).collect::<Vec<_>>()
        };
        let map = "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,OTHER:PLAINTEXT\n";
        let listeners = "listeners=OTHER://:9094,PLAINTEXT://:9092,CONTROLLER://:9093\n";
        let of = |order: &str| names(&format!("{map}{listeners}controller.listener.names={order}\n"));
        assert_eq!(of("CONTROLLER,OTHER"), ["CONTROLLER", "OTHER"]);
        assert_eq!(of("other,controller"), ["OTHER", "CONTROLLER"]);
        assert_eq!(names(&format!("{map}controller.listener.names=OTHER,CONTROLLER\n")), ["CONTROLLER"]);
        assert_eq!(names("process.roles=broker\nlisteners=PLAINTEXT://:9092\n"), [""; 0]);
    }

    #[test]
    fn brokers_use_the_listener_that_the_protocol_among_them_names() {
        let keys = "listeners=PLAINTEXT://:9092,SSL://:9094,CONTROLLER://:9093\nsecurity.inter.broker.protocol=SSL\n\
                    listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SSL:SSL,CONTROLLER:PLAINTEXT\n";
        assert_eq!(parse(keys).unwrap().0.inter_broker_listener_name, "SSL");
    }

    #[test]
    fn run_time_changes_lie_over_the_file_and_read_only_keys_do_not_change() {
        let (config, _) = parse("log.retention.ms=5\n").unwrap();
        let changed = config.with_dynamic([("log.retention.ms", "9"), ("node.id", "1")]).unwrap();
        assert_eq!(changed.set_value("log.retention.ms"), Some("9"));
        assert_eq!(changed.node_id, BrokerId(7));
    }
}
