//! DescribeConfigs: every key of a topic, a broker, a group or client metrics with its value, where that comes from and what else is set
//! (`ConfigHelper`).

use gregor_config::{BrokerConfig, ConfigKey, Kind, Update, broker_key, prefixed_broker_key, topic_key};
use gregor_controller::{
    ConfigSource, EffectiveConfig, Synonym, broker_configs, client_metrics_configs, group_configs, listener_configs,
    topic_configs,
};
use gregor_messages::{
    DescribeConfigsRequest, DescribeConfigsResponse,
    describe_configs_request::DescribeConfigsResource,
    describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym},
};
use gregor_metadata::{ConfigResource, Image, ResourceType};
use gregor_types::{BrokerId, ErrorCode, KString, check_topic_name};

use super::Context;

/// Answers from the newest image and this node's own configuration.
pub(crate) async fn handle(
    context: &Context,
    request: DescribeConfigsRequest,
    _version: i16,
) -> DescribeConfigsResponse {
    let image = context.broker.image();
    let view = View {
        image: &image,
        broker: &context.broker.config,
        synonyms: request.include_synonyms,
        documentation: request.include_documentation,
    };
    let results = request.resources.iter().map(|resource| view.result(resource)).collect();
    DescribeConfigsResponse { results, ..Default::default() }
}

struct View<'a> {
    image: &'a Image,
    broker: &'a BrokerConfig,
    synonyms: bool,
    documentation: bool,
}

type Refused = (ErrorCode, String);

impl View<'_> {
    fn result(&self, resource: &DescribeConfigsResource) -> DescribeConfigsResult {
        let configs = self.configs(resource);
        let mut result = DescribeConfigsResult {
            resource_type: resource.resource_type,
            resource_name: resource.resource_name.clone(),
            ..Default::default()
        };
        match configs {
            Ok(mut configs) => {
                if let Some(keys) = resource.configuration_keys.as_ref().filter(|keys| !keys.is_empty()) {
                    configs.retain(|config| keys.contains(&config.name));
                }
                result.configs = configs;
            }
            Err((error, message)) => {
                result.error_code = error.code();
                result.error_message = Some(message.into());
            }
        }
        result
    }

    fn configs(&self, resource: &DescribeConfigsResource) -> Result<Vec<DescribeConfigsResourceResult>, Refused> {
        let name = &resource.resource_name;
        let invalid = |message: String| Err((ErrorCode::InvalidRequest, message));
        match ResourceType::from_code(resource.resource_type) {
            ResourceType::Topic => self.topic(name),
            ResourceType::Broker if name.is_empty() => Ok(self.all_brokers()),
            ResourceType::Broker => {
                self.check_this_broker(name, " or empty string")?;
                let entry = |config: EffectiveConfig| self.entry(&config, config.key.update == Update::ReadOnly);
                // As in Apache Kafka, a listener's key is shown read-only, whether or not it can change while running.
                let listeners = listener_configs(self.image, self.broker).map(|config| self.entry(&config, true));
                let own = broker_configs(self.image, self.broker).map(entry);
                Ok(own.chain(listeners).chain(self.unknown()).collect())
            }
            ResourceType::BrokerLogger if name.is_empty() => invalid("Broker id must not be empty".to_owned()),
            ResourceType::BrokerLogger => {
                self.check_this_broker(name, "")?;
                Ok(vec![root_logger(self.synonyms)])
            }
            ResourceType::ClientMetrics if name.is_empty() => {
                invalid("Client metrics subscription name must not be empty".to_owned())
            }
            ResourceType::ClientMetrics => Ok(self.client_metrics(name)),
            ResourceType::Group if name.is_empty() => invalid("Group name must not be empty".to_owned()),
            ResourceType::Group => Ok(self.group(name)),
            ResourceType::Other(code) => invalid(format!("Unsupported resource type: {code}")),
        }
    }

    fn topic(&self, name: &KString) -> Result<Vec<DescribeConfigsResourceResult>, Refused> {
        check_topic_name(name).map_err(|error| (ErrorCode::InvalidTopicException, error.to_string()))?;
        if self.image.topics().by_name(name).is_none() {
            let message = "This server does not host this topic-partition.".to_owned();
            return Err((ErrorCode::UnknownTopicOrPartition, message));
        }
        Ok(topic_configs(self.image, self.broker, name).map(|config| self.entry(&config, false)).collect())
    }

    /// What is set at run time for all brokers; nothing that is not set.
    fn all_brokers(&self) -> Vec<DescribeConfigsResourceResult> {
        let resource = ConfigResource::all_brokers();
        let set = self.image.configs().of(&resource);
        let entry = |(name, value): (&KString, &KString)| {
            let key = broker_key(name)?;
            let source = ConfigSource::DynamicDefaultBrokerConfig;
            let synonyms = vec![Synonym { name: name.clone(), value: value.to_string(), source }];
            let config = EffectiveConfig { name: name.clone(), key, value: Some(value.to_string()), source, synonyms };
            Some(self.entry(&config, key.update == Update::ReadOnly))
        };
        set.filter_map(entry).collect()
    }

    fn group(&self, name: &KString) -> Vec<DescribeConfigsResourceResult> {
        group_configs(self.image, self.broker, name).map(|config| self.entry(&config, false)).collect()
    }

    /// Keys that are set for this broker at run time and that no table has: told, but not what they hold.
    fn unknown(&self) -> Vec<DescribeConfigsResourceResult> {
        let own = ConfigResource::new(ResourceType::Broker, self.broker.node_id.to_string());
        let of = |resource: &ConfigResource, source: ConfigSource| {
            let names = self.image.configs().of(resource).map(|(name, _)| name);
            let unknown = names.filter(|name| prefixed_broker_key(name).is_none());
            let entry = |name: &KString| DescribeConfigsResourceResult {
                name: name.clone(),
                value: None,
                read_only: true,
                config_source: source as i8,
                is_sensitive: true,
                ..Default::default()
            };
            unknown.map(entry).collect::<Vec<_>>()
        };
        let mut entries = of(&own, ConfigSource::DynamicBrokerConfig);
        for entry in of(&ConfigResource::all_brokers(), ConfigSource::DynamicDefaultBrokerConfig) {
            if !entries.iter().any(|own| own.name == entry.name) {
                entries.push(entry);
            }
        }
        entries
    }

    fn client_metrics(&self, name: &KString) -> Vec<DescribeConfigsResourceResult> {
        client_metrics_configs(self.image, name).map(|config| self.entry(&config, false)).collect()
    }

    /// A broker's configuration is known to itself only.
    fn check_this_broker(&self, name: &str, alternative: &str) -> Result<(), Refused> {
        let this = self.broker.node_id;
        match name.parse().map(BrokerId) {
            Ok(id) if id == this => Ok(()),
            Ok(id) => Err((
                ErrorCode::InvalidRequest,
                format!("Unexpected broker id, expected {this}{alternative}, but received {id}"),
            )),
            Err(_) => Err((ErrorCode::InvalidRequest, format!("Broker id must be an integer, but it is: {name}"))),
        }
    }

    fn entry(&self, config: &EffectiveConfig, read_only: bool) -> DescribeConfigsResourceResult {
        let secret = config.key.kind == Kind::Password;
        let synonym = |synonym: &Synonym| DescribeConfigsSynonym {
            name: synonym.name.clone(),
            value: (!secret).then(|| synonym.value.as_str().into()),
            source: synonym.source as i8,
            ..Default::default()
        };
        DescribeConfigsResourceResult {
            name: config.name.clone(),
            value: config.value.as_deref().filter(|_| !secret).map(KString::from),
            read_only,
            // Where only another key stands in, Apache Kafka calls the value a default.
            config_source: config.synonyms.first().map_or(ConfigSource::DefaultConfig, |first| first.source) as i8,
            is_sensitive: secret,
            synonyms: if self.synonyms { config.synonyms.iter().map(synonym).collect() } else { Vec::new() },
            config_type: config.key.kind.code(),
            documentation: self.documentation.then(|| documentation(config.key)),
            ..Default::default()
        }
    }
}

fn documentation(key: &'static ConfigKey) -> KString {
    // A broker's key that only stands in for a topic's is best explained by the topic's.
    let text = if key.documentation.is_empty() {
        topic_key(key.name).map_or("", |key| key.documentation)
    } else {
        key.documentation
    };
    KString::from_static(text)
}

/// This program has one logger; its level is what `GREGOR_LOG` or the command line said.
fn root_logger(synonyms: bool) -> DescribeConfigsResourceResult {
    let level = tracing::level_filters::LevelFilter::current().to_string().to_uppercase();
    let source = ConfigSource::DynamicBrokerLoggerConfig as i8;
    let name = KString::from_static("root");
    let synonym =
        DescribeConfigsSynonym { name: name.clone(), value: Some(level.as_str().into()), source, ..Default::default() };
    DescribeConfigsResourceResult {
        name,
        value: Some(level.into()),
        read_only: true,
        config_source: source,
        synonyms: if synonyms { vec![synonym] } else { Vec::new() },
        config_type: Kind::String.code(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use gregor_config::Properties;
    use gregor_state_records::metadata::{ConfigRecord, MetadataRecord};

    use super::{super::test_image::image, *};

    fn broker() -> BrokerConfig {
        let text = "node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=C\nlisteners=PLAINTEXT://:0,C://:0\n\
                    listener.security.protocol.map=C:PLAINTEXT,PLAINTEXT:PLAINTEXT\ncontroller.quorum.bootstrap.servers=h:1\n\
                    log.retention.hours=2\n";
        BrokerConfig::from_properties(&Properties::parse(text).unwrap()).unwrap().0
    }

    fn describe(
        records: &[(i8, &str, &str, &str)],
        resource_type: i8,
        resource: &str,
        keys: Option<&[&str]>,
    ) -> DescribeConfigsResult {
        describe_on(&broker(), records, resource_type, resource, keys)
    }

    fn describe_on(
        broker: &BrokerConfig,
        records: &[(i8, &str, &str, &str)],
        resource_type: i8,
        resource: &str,
        keys: Option<&[&str]>,
    ) -> DescribeConfigsResult {
        let mut image = image();
        for (resource_type, resource, name, value) in records {
            let record = ConfigRecord {
                resource_type: *resource_type,
                resource_name: (*resource).into(),
                name: (*name).into(),
                value: Some((*value).into()),
                ..Default::default()
            };
            image.apply(&MetadataRecord::Config(record)).unwrap();
        }
        let view = View { image: &image, broker, synonyms: true, documentation: true };
        view.result(&DescribeConfigsResource {
            resource_type,
            resource_name: resource.into(),
            configuration_keys: keys.map(|keys| keys.iter().map(|key| (*key).into()).collect()),
            ..Default::default()
        })
    }

    fn shown(config: &DescribeConfigsResourceResult) -> String {
        let synonyms: Vec<_> = config
            .synonyms
            .iter()
            .map(|synonym| {
                format!("{}={}@{}", synonym.name, synonym.value.as_deref().unwrap_or("null"), synonym.source)
            })
            .collect();
        let value = config.value.as_deref().unwrap_or("null");
        format!("{}={value}@{} [{}]", config.name, config.config_source, synonyms.join(" "))
    }

    #[test]
    fn a_topics_value_comes_with_everything_that_it_overrides() {
        let set = [(2, "t", "retention.ms", "5"), (4, "1", "log.retention.ms", "6"), (4, "", "log.retention.ms", "7")];
        let result = describe(&set, 2, "t", Some(&["retention.ms"]));
        assert_eq!(
            shown(&result.configs[0]),
            "retention.ms=5@1 [retention.ms=5@1 log.retention.ms=6@2 log.retention.ms=7@3 log.retention.hours=2@4 \
             log.retention.hours=168@5]"
        );
        let result = describe(&[], 2, "t", Some(&["retention.ms", "cleanup.policy"]));
        assert_eq!(shown(&result.configs[0]), "cleanup.policy=delete@5 [log.cleanup.policy=delete@5]");
        // Apache Kafka tells no synonyms, and a default, where only the key in hours is set.
        assert_eq!(shown(&result.configs[1]), "retention.ms=7200000@5 []");
        assert_eq!(result.configs[1].config_type, 5);
        assert!(result.configs[1].documentation.as_ref().is_some_and(|text| !text.is_empty()));
    }

    #[test]
    fn a_broker_shows_all_its_keys_and_which_need_a_restart() {
        let result = describe(&[(4, "", "log.retention.ms", "7")], 4, "1", None);
        let config = |name: &str| result.configs.iter().find(|config| config.name == name).unwrap();
        assert_eq!(
            shown(config("log.retention.ms")),
            "log.retention.ms=7@3 [log.retention.ms=7@3 log.retention.hours=2@4 log.retention.hours=168@5]"
        );
        assert_eq!(shown(config("log.roll.ms")), "log.roll.ms=null@5 []");
        assert_eq!(config("broker.id").value.as_deref(), Some("1"));
        assert!(!config("log.retention.ms").read_only && config("node.id").read_only);
        assert_eq!(config("node.id").value.as_deref(), Some("1"));
        assert!(config("ssl.key.password").is_sensitive);
        assert_eq!(config("ssl.key.password").value, None);
        let all = describe(&[(4, "", "log.retention.ms", "7")], 4, "", None);
        assert_eq!(all.configs.iter().map(shown).collect::<Vec<_>>(), ["log.retention.ms=7@3 [log.retention.ms=7@3]"]);
    }

    #[test]
    fn an_internal_key_is_shown_where_it_is_set() {
        const INTERNAL: &str = "unclean.leader.election.interval.ms";
        assert!(describe(&[], 4, "1", Some(&[INTERNAL])).configs.is_empty());
        let text = "node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=C\nlisteners=S://:0,C://:0\n\
                    listener.security.protocol.map=C:PLAINTEXT,S:PLAINTEXT\ncontroller.quorum.bootstrap.servers=h:1\n\
                    inter.broker.listener.name=S\nunclean.leader.election.interval.ms=5\n";
        let (broker, warnings) = BrokerConfig::from_properties(&Properties::parse(text).unwrap()).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let configs = describe_on(&broker, &[], 4, "1", Some(&[INTERNAL])).configs;
        let shown: Vec<_> = configs.iter().map(|config| (config.value.as_deref(), config.read_only)).collect();
        assert_eq!(shown, [(Some("5"), true)]);
    }

    #[test]
    fn a_key_of_a_listener_is_shown_under_its_own_name_before_the_common_one() {
        let text = "node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=C\nlisteners=S://:0,C://:0\n\
                    listener.security.protocol.map=C:PLAINTEXT,S:SSL\ncontroller.quorum.bootstrap.servers=h:1\n\
                    inter.broker.listener.name=S\nssl.keystore.location=/common\n\
                    listener.name.s.ssl.keystore.location=/fixed\nlistener.name.s.ssl.client.auth=required\n";
        let broker = BrokerConfig::from_properties(&Properties::parse(text).unwrap()).unwrap().0;
        let set = [
            (4, "1", "listener.name.s.ssl.keystore.location", "/changed"),
            (4, "1", "listener.name.s.ssl.key.password", "secret"),
        ];
        let result = describe_on(&broker, &set, 4, "1", None);
        let config = |name: &str| result.configs.iter().find(|config| config.name == name).unwrap();
        let location = config("listener.name.s.ssl.keystore.location");
        assert_eq!(
            shown(location),
            "listener.name.s.ssl.keystore.location=/changed@2 [listener.name.s.ssl.keystore.location=/changed@2 \
             listener.name.s.ssl.keystore.location=/fixed@4 ssl.keystore.location=/common@4]"
        );
        assert!(location.read_only && !location.is_sensitive && location.config_type == Kind::String.code());
        let password = config("listener.name.s.ssl.key.password");
        assert!(password.is_sensitive);
        assert_eq!(
            shown(password),
            "listener.name.s.ssl.key.password=null@2 [listener.name.s.ssl.key.password=null@2]"
        );
        assert_eq!(
            shown(config("listener.name.s.ssl.client.auth")),
            "listener.name.s.ssl.client.auth=required@4 [listener.name.s.ssl.client.auth=required@4 ssl.client.auth=none@5]"
        );
        assert_eq!(
            shown(config("ssl.keystore.location")),
            "ssl.keystore.location=/common@4 [ssl.keystore.location=/common@4]"
        );
    }

    #[test]
    fn groups_and_loggers_are_described() {
        let result = describe(&[(32, "g", "consumer.session.timeout.ms", "50000")], 32, "g", None);
        let config = result.configs.iter().find(|config| config.name == "consumer.session.timeout.ms").unwrap();
        assert_eq!((config.value.as_deref(), config.config_source), (Some("50000"), 8));
        assert_eq!(describe(&[], 8, "1", None).configs[0].name, "root");
        let set = [(16, "m", "metrics", "org.apache.kafka.producer.")];
        let subscription: Vec<_> = describe(&set, 16, "m", None).configs.iter().map(shown).collect();
        let own = "metrics=org.apache.kafka.producer.@7 [metrics=org.apache.kafka.producer.@7]";
        assert_eq!(subscription, ["interval.ms=300000@5 []", "match=@5 []", own]);
    }

    #[test]
    fn what_does_not_exist_or_is_elsewhere_has_kafkas_errors() {
        let error = |resource_type, name: &str| {
            let result = describe(&[], resource_type, name, None);
            (ErrorCode::from_code(result.error_code).unwrap(), result.error_message.unwrap().to_string())
        };
        assert_eq!(error(2, "nope").0, ErrorCode::UnknownTopicOrPartition);
        assert_eq!(error(2, "a b").0, ErrorCode::InvalidTopicException);
        assert_eq!(
            error(4, "2"),
            (ErrorCode::InvalidRequest, "Unexpected broker id, expected 1 or empty string, but received 2".to_owned())
        );
        assert_eq!(error(4, "x").1, "Broker id must be an integer, but it is: x");
        assert_eq!(error(8, "").1, "Broker id must not be empty");
        assert_eq!(error(32, "").1, "Group name must not be empty");
        assert_eq!(error(9, "x").1, "Unsupported resource type: 9");
    }
}
