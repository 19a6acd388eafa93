//! The file `quorum-state`: what this node must remember of elections, in Kafka's JSON (`FileQuorumStateStore`).
//!
//! Version 0 belongs to static quorums and names the voters; version 1 belongs to dynamic ones and names the directory voted for.

use std::{
    io,
    path::{Path, PathBuf},
};

use gregor_log::{
    Disk,
    disk::{read_file, replace_file},
};
use gregor_raft::{ElectionState, ReplicaKey, VoterSet};
use gregor_types::{BrokerId, DirectoryId, LeaderEpoch};
use serde_json::Value;

const FILE: &str = "quorum-state";
/// Far above what the file of a thousand voters takes.
const BYTES_MAX: usize = 1 << 20;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QuorumStateError {
    /// The file system.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not what Kafka writes.
    #[error("{} is not a quorum state: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Written by a later Kafka.
    #[error("{} has data_version {version}; this version of Gregor reads 0 and 1", path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i64,
    },
}

/// Reads the file; a node that has none has seen no election.
pub(super) fn read(disk: &dyn Disk, partition: &Path) -> Result<ElectionState, QuorumStateError> {
    let path = partition.join(FILE);
    let content = match read_file(disk, &path, BYTES_MAX) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ElectionState::INITIAL),
        Err(error) => return Err(QuorumStateError::File { path, error }),
    };
    let malformed = |what: String| QuorumStateError::Malformed { path: path.clone(), what };
    let json: Value = serde_json::from_slice(&content).map_err(|error| malformed(error.to_string()))?;
    let number =
        |key: &str| json.get(key).and_then(Value::as_i64).ok_or_else(|| malformed(format!("{key} is not a number")));
    let small = |key: &str| {
        number(key).and_then(|value| i32::try_from(value).map_err(|_| malformed(format!("{key} is {value}"))))
    };
    let version = number("data_version")?;
    if !(0..=1).contains(&version) {
        return Err(QuorumStateError::UnknownVersion { path: path.clone(), version });
    }
    let directory = match json.get("votedDirectoryId").and_then(Value::as_str) {
        Some(text) => text.parse().map_err(|error| malformed(format!("votedDirectoryId: {error}")))?,
        None => DirectoryId::ZERO,
    };
    let id = |key: &str| small(key).map(|id| (id >= 0).then_some(BrokerId(id)));
    Ok(ElectionState {
        epoch: LeaderEpoch(small("leaderEpoch")?),
        leader: id("leaderId")?,
        voted: id("votedId")?.map(|id| ReplicaKey::new(id, directory)),
    })
}

/// Writes the file as a whole; on return it is on disk.
pub(super) fn write(
    disk: &dyn Disk,
    partition: &Path,
    state: &ElectionState,
    kraft_version: i16,
    voters: &VoterSet,
) -> Result<(), QuorumStateError> {
    let path = partition.join(FILE);
    let text = encode(state, kraft_version, voters);
    replace_file(disk, &path, text.as_bytes()).map_err(|error| QuorumStateError::File { path, error })
}

fn encode(state: &ElectionState, kraft_version: i16, voters: &VoterSet) -> String {
    let leader = state.leader.map_or(-1, i32::from);
    let epoch = state.epoch.value();
    let voted = state.voted.map_or(-1, |voted| voted.id.value());
    if kraft_version == 0 {
        let voters: Vec<String> = voters.iter().map(|voter| format!(r#"{{"voterId":{}}}"#, voter.key.id)).collect();
        let voters = voters.join(",");
        return format!(
            r#"{{"clusterId":"","leaderId":{leader},"leaderEpoch":{epoch},"votedId":{voted},"appliedOffset":0,"currentVoters":[{voters}],"data_version":0}}"#
        );
    }
    let directory = state.voted.map_or(DirectoryId::ZERO, ReplicaKey::directory_or_zero);
    format!(
        r#"{{"leaderId":{leader},"leaderEpoch":{epoch},"votedId":{voted},"votedDirectoryId":"{directory}","data_version":1}}"#
    )
}

#[cfg(test)]
mod tests {
    use gregor_log::disk::FaultyDisk;
    use gregor_raft::Voter;

    use super::*;

    fn one_voter() -> VoterSet {
        let key = ReplicaKey { id: BrokerId(1), directory: None };
        VoterSet::new([Voter { key, endpoints: Vec::new(), kraft_versions: (0, 0) }])
    }

    #[test]
    fn the_text_is_apaches() {
        let state = ElectionState::elected(LeaderEpoch(1), BrokerId(1));
        assert_eq!(
            encode(&state, 1, &one_voter()),
            r#"{"leaderId":1,"leaderEpoch":1,"votedId":-1,"votedDirectoryId":"AAAAAAAAAAAAAAAAAAAAAA","data_version":1}"#
        );
        assert_eq!(
            encode(&state, 0, &one_voter()),
            r#"{"clusterId":"","leaderId":1,"leaderEpoch":1,"votedId":-1,"appliedOffset":0,"currentVoters":[{"voterId":1}],"data_version":0}"#
        );
    }

    #[test]
    fn a_vote_reads_back_in_both_versions_and_a_later_one_is_refused() {
        let disk = FaultyDisk::default();
        let partition = Path::new("/data/__cluster_metadata-0");
        disk.create_directory(partition).unwrap();
        assert_eq!(read(&disk, partition).unwrap(), ElectionState::INITIAL);
        let voted =
            ElectionState::voted(LeaderEpoch(7), ReplicaKey::new(BrokerId(1), DirectoryId::from_bytes([9; 16])));
        write(&disk, partition, &voted, 1, &one_voter()).unwrap();
        assert_eq!(read(&disk, partition).unwrap(), voted);
        let without = ElectionState::voted(LeaderEpoch(7), ReplicaKey { id: BrokerId(1), directory: None });
        write(&disk, partition, &without, 0, &one_voter()).unwrap();
        assert_eq!(read(&disk, partition).unwrap(), without);
        replace_file(&disk, &partition.join(FILE), br#"{"data_version":2}"#).unwrap();
        assert!(matches!(read(&disk, partition), Err(QuorumStateError::UnknownVersion { version: 2, .. })));
    }
}
