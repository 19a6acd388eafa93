//! Finalized feature levels as users raise and lower them (`FeatureControlManager`, KIP-584, KIP-778).
//!
//! A level is finalized only if this controller, every broker and every other controller that is registered serve it, and
//! `metadata.version` is lowered only as far as nothing that the metadata may hold would be lost. `kraft.version` is not a matter of
//! metadata records: the quorum finalizes it, once it was asked for here and nothing else of the request is refused.

use gregor_messages::{
    UpdateFeaturesRequest, UpdateFeaturesResponse, update_features_request::FeatureUpdateKey,
    update_features_response::UpdatableFeatureResult,
};
use gregor_metadata::{
    ConfigResource, ELIGIBLE_LEADER_REPLICAS_FEATURE, KRAFT_VERSION_FEATURE, METADATA_VERSION_FEATURE, MetadataVersion,
    ResourceType, VersionRange,
};
use gregor_state_records::metadata::{ConfigRecord, FeatureLevelRecord, MetadataRecord};
use gregor_types::{ErrorCode, KString};

use crate::{Refusal, elections, plan::Plan};

const MIN_IN_SYNC_REPLICAS: &str = "min.insync.replicas";

/// In which direction a user lets a level go (`FeatureUpdate.UpgradeType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Upgrade,
    SafeDowngrade,
    UnsafeDowngrade,
}

/// What the quorum has to do with an update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KRaft<'a> {
    /// The `kraft.version` that it runs.
    pub(crate) present: i16,
    /// What it said to a higher one; none where it was not asked yet.
    pub(crate) answer: Option<&'a Result<(), Refusal>>,
}

/// What an update comes to.
pub(crate) enum Updated {
    /// It is done, or refused.
    Answer(UpdateFeaturesResponse),
    /// Nothing is in its way but what the quorum says to this `kraft.version`.
    AskQuorum(i16),
}

/// All of the updates happen, or none.
pub(crate) fn update(plan: &mut Plan<'_>, request: &UpdateFeaturesRequest, version: i16, kraft: KRaft<'_>) -> Updated {
    let (start, mark) = (plan.mark(), plan.mark());
    let mut asked = None;
    let result = request.feature_updates.iter().try_for_each(|update| -> Result<(), Refusal> {
        asked = update_one(plan, request, update, version, kraft)?.or(asked);
        Ok(())
    });
    let kept = plan.keep(mark, result);
    if let (Ok(()), Some(wanted)) = (&kept, asked) {
        plan.undo(start);
        return Updated::AskQuorum(wanted);
    }
    if let Err(refusal) = kept {
        let words = "The update failed for all features since the following feature had an error: ";
        return Updated::Answer(UpdateFeaturesResponse {
            error_code: refusal.number(),
            error_message: Some(format!("{words}{}", refusal.message).into()),
            ..Default::default()
        });
    }
    if request.validate_only {
        plan.undo(start);
    }
    let result = |update: &FeatureUpdateKey| UpdatableFeatureResult {
        feature: update.feature.clone(),
        error_message: None,
        ..Default::default()
    };
    // Since version 2 there is one result for all of them.
    let results = if version <= 1 { request.feature_updates.iter().map(result).collect() } else { Vec::new() };
    Updated::Answer(UpdateFeaturesResponse { error_message: None, results, ..Default::default() })
}

/// Does one update, or says which `kraft.version` the quorum has to be asked for.
fn update_one(
    plan: &mut Plan<'_>,
    request: &UpdateFeaturesRequest,
    update: &FeatureUpdateKey,
    version: i16,
    kraft: KRaft<'_>,
) -> Result<Option<i16>, Refusal> {
    let (name, level) = (update.feature.as_str(), update.max_version_level);
    let invalid = |why: &str| {
        let message = format!("Invalid update version {level} for feature {name}. {why}");
        Err(Refusal::new(ErrorCode::InvalidUpdateVersion, message))
    };
    let direction = match (version, update.upgrade_type) {
        (0, _) if update.allow_downgrade => Direction::SafeDowngrade,
        (0, _) | (_, 1) => Direction::Upgrade,
        (_, 2) => Direction::SafeDowngrade,
        (_, 3) => Direction::UnsafeDowngrade,
        _ => return invalid("The controller does not support the given upgrade type."),
    };
    if level < 0 {
        return invalid("A feature version cannot be less than 0.");
    }
    if let Some(why) = who_does_not_serve(plan, name, level) {
        return invalid(&why);
    }
    let is_kraft = name == KRAFT_VERSION_FEATURE;
    let current = if is_kraft { kraft.present } else { plan.image.features().level(name) };
    if level < current && direction == Direction::Upgrade {
        return invalid(
            "Can't downgrade the version of this feature without setting the upgrade type to either safe or unsafe \
             downgrade.",
        );
    }
    if level > current && direction != Direction::Upgrade {
        return invalid("Can't downgrade to a newer version.");
    }
    if is_kraft {
        return match kraft.answer {
            _ if level < current => invalid("Can't downgrade the version of this feature."),
            _ if level == current => Ok(None),
            None => Ok(Some(level)),
            Some(answer) => answer.clone().map(|()| None),
        };
    }
    if name == METADATA_VERSION_FEATURE {
        check_metadata_version(plan.version(), level, direction)?;
    } else if name == ELIGIBLE_LEADER_REPLICAS_FEATURE && level > 0 {
        check_holds_elr(plan, request, level)?;
        agree_on_min_in_sync(plan);
    }
    if level != current {
        plan.push(MetadataRecord::FeatureLevel(FeatureLevelRecord {
            name: update.feature.compact(),
            feature_level: level,
            ..Default::default()
        }));
    }
    if name == ELIGIBLE_LEADER_REPLICAS_FEATURE && level == 0 {
        elections::forget_eligible(plan);
    }
    Ok(None)
}

/// The first node that does not serve a level, and what it serves.
fn who_does_not_serve(plan: &Plan<'_>, name: &str, level: i16) -> Option<String> {
    let why = |who: String, min: i16, max: i16| {
        if (min..=max).contains(&level) {
            None
        } else if max == 0 {
            Some(format!("{who} does not support this feature."))
        } else if min == max {
            Some(format!("{who} only supports versions {min}"))
        } else {
            Some(format!("{who} only supports versions {min}-{max}"))
        }
    };
    let of = |ranges: &[VersionRange]| {
        ranges.iter().find(|range| range.feature == name).map_or((0, 0), |range| (range.min, range.max))
    };
    let own = plan.config.served.iter().find(|feature| feature.name == name);
    let (min, max) = own.map_or((0, 0), |feature| (feature.min, feature.max));
    let this = plan.config.broker.node_id;
    let cluster = plan.image.cluster();
    why(format!("Local controller {this}"), min, max)
        .or_else(|| {
            cluster.brokers().find_map(|broker| {
                let (min, max) = of(&broker.features);
                why(format!("Broker {}", broker.id), min, max)
            })
        })
        .or_else(|| {
            cluster.controllers().filter(|controller| controller.id != this).find_map(|controller| {
                let (min, max) = of(&controller.features);
                why(format!("Controller {}", controller.id), min, max)
            })
        })
}

fn check_metadata_version(current: MetadataVersion, level: i16, direction: Direction) -> Result<(), Refusal> {
    let refused = |message: String| Err(Refusal::new(ErrorCode::InvalidUpdateVersion, message));
    let Some(wanted) = MetadataVersion::from_level(level) else {
        return refused(format!("Invalid metadata.version {level}. Unknown metadata.version."));
    };
    let loses = MetadataVersion::all().any(|passed| wanted < passed && passed <= current && passed.changed_metadata());
    let why = match direction {
        _ if !loses => return Ok(()),
        Direction::UnsafeDowngrade => "Unsafe metadata downgrade is not supported in this version.",
        _ => "Refusing to perform the requested downgrade because it might delete metadata information.",
    };
    refused(format!("Unsupported metadata.version downgrade from {} to {level}. {why}", current.level()))
}

/// Eligible leader replicas need records that hold them, now or after the whole request.
fn check_holds_elr(plan: &Plan<'_>, request: &UpdateFeaturesRequest, level: i16) -> Result<(), Refusal> {
    let wanted = request.feature_updates.iter().find(|other| other.feature == METADATA_VERSION_FEATURE);
    let metadata = wanted.map_or_else(|| plan.version().level(), |wanted| wanted.max_version_level);
    if MetadataVersion::from_level(metadata).is_some_and(MetadataVersion::has_eligible_leader_replicas) {
        return Ok(());
    }
    let name = ELIGIBLE_LEADER_REPLICAS_FEATURE;
    Err(Refusal::new(
        ErrorCode::InvalidUpdateVersion,
        format!(
            "Invalid update version {level} for feature {name}. {name} could not be set to {level} because it depends on \
             metadata.version level 23"
        ),
    ))
}

/// KIP-966: from now on all nodes must see the same number of replicas that have to be in sync: one for the cluster, none for a broker.
pub(crate) fn agree_on_min_in_sync(plan: &mut Plan<'_>) {
    let image = plan.image.clone();
    let value = |resource: &ConfigResource| image.configs().get(resource, MIN_IN_SYNC_REPLICAS).cloned();
    let record = |resource: &ConfigResource, value: Option<KString>| {
        MetadataRecord::Config(ConfigRecord {
            resource_type: resource.resource_type.code(),
            resource_name: resource.name.compact(),
            name: MIN_IN_SYNC_REPLICAS.into(),
            value,
            ..Default::default()
        })
    };
    let all = ConfigResource::all_brokers();
    if value(&all).is_none() {
        let fixed =
            plan.config.broker.set_value(MIN_IN_SYNC_REPLICAS).and_then(|fixed| fixed.trim().parse::<i32>().ok());
        plan.push(record(&all, Some(fixed.unwrap_or(1).to_string().into())));
    }
    let is_broker = |resource: &&ConfigResource| resource.resource_type == ResourceType::Broker && **resource != all;
    for broker in image.configs().resources().filter(is_broker) {
        if value(broker).is_some() {
            plan.push(record(broker, None));
        }
    }
}
