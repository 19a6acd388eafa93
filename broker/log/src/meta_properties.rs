//! `meta.properties`: which cluster, node and directory a log directory belongs to.

use std::{fmt::Write, io, path::Path};

use gregor_types::{BrokerId, ClusterId, DirectoryId};

use crate::{
    Disk, LogError,
    disk::{read_file, replace_file},
};

pub(crate) const FILE_NAME: &str = "meta.properties";
const BYTES_MAX: usize = 64 << 10;

/// The identity of a log directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaProperties {
    /// The format: 1 for KRaft; 0 is what ZooKeeper's time has left.
    pub version: i32,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The node.
    pub node_id: BrokerId,
    /// This directory; lacking where a Kafka before 3.7 formatted it.
    pub directory_id: Option<DirectoryId>,
}

impl MetaProperties {
    /// Reads a directory's identity; none if it was never formatted.
    pub fn read(disk: &dyn Disk, directory: &Path) -> Result<Option<Self>, LogError> {
        let path = directory.join(FILE_NAME);
        match read_file(disk, &path, BYTES_MAX) {
            Ok(content) => Self::parse(&path, &String::from_utf8_lossy(&content)).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LogError::io(&path)(error)),
        }
    }

    /// Writes a directory's identity in place of the one that may be there. Blocks.
    pub fn write(&self, disk: &dyn Disk, directory: &Path) -> Result<(), LogError> {
        let path = directory.join(FILE_NAME);
        replace_file(disk, &path, self.to_text().as_bytes()).map_err(LogError::io(&path))
    }

    fn parse(path: &Path, text: &str) -> Result<Self, LogError> {
        let value = |key: &str| {
            text.lines()
                .map(str::trim)
                .filter(|line| !line.starts_with(['#', '!']))
                .filter_map(|line| line.split_once(['=', ':']))
                .find(|(name, _)| name.trim() == key)
                .map(|(_, value)| value.trim().replace('\\', ""))
        };
        let malformed = |key: &str| LogError::malformed(path, format!("its {key} is missing or malformed"));
        let version: i32 = value("version").and_then(|v| v.parse().ok()).ok_or_else(|| malformed("version"))?;
        let node_key = if version == 0 { "broker.id" } else { "node.id" };
        if !(0..=1).contains(&version) {
            return Err(LogError::malformed(path, format!("its version is {version}; 0 and 1 are known")));
        }
        let node_id = value(node_key).and_then(|id| id.parse().ok()).ok_or_else(|| malformed(node_key))?;
        let cluster_id = value("cluster.id").ok_or_else(|| malformed("cluster.id"))?;
        let directory_id =
            value("directory.id").map(|id| id.parse().map_err(|_| malformed("directory.id"))).transpose()?;
        Ok(Self { version, cluster_id: cluster_id.into(), node_id: BrokerId(node_id), directory_id })
    }

    fn to_text(&self) -> String {
        let mut text = String::from("#\n");
        let node_key = if self.version == 0 { "broker.id" } else { "node.id" };
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            writeln!(text, "{key}={value}").expect("a string takes everything");
        };
        line("cluster.id", &&*self.cluster_id);
        if let Some(directory_id) = &self.directory_id {
            line("directory.id", directory_id);
        }
        line(node_key, &self.node_id);
        line("version", &self.version);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apache_writes_is_read_and_what_is_written_reads_back() {
        let text = "#\n#Mon Nov 23 08:00:00 UTC 2026\ncluster.id=4L6g3nShT-eMCtK--X86sw\ndirectory.id=uZ9tHTWSR9SSAv6t2EZdKw\nnode.id=3\nversion=1\n";
        let properties = MetaProperties::parse(Path::new("m"), text).unwrap();
        assert_eq!(&*properties.cluster_id, "4L6g3nShT-eMCtK--X86sw");
        assert_eq!(properties.node_id, BrokerId(3));
        assert_eq!(properties.directory_id.unwrap().to_string(), "uZ9tHTWSR9SSAv6t2EZdKw");
        assert_eq!(MetaProperties::parse(Path::new("m"), &properties.to_text()).unwrap(), properties);
        assert!(MetaProperties::parse(Path::new("m"), "version=7\n").is_err());
        assert!(MetaProperties::parse(Path::new("m"), "version=1\ncluster.id=a\n").is_err());
    }
}
