//! `cordoned.log.dirs`: the log directories of a node that get no new replicas (KIP-1066).
//!
//! `broker.rs` reads it with the rest of a configuration; the controller asks before it stores one for its own node.

use std::path::{Path, PathBuf};

use crate::value::{ConfigError, split_list};

/// All of them.
const ALL: &str = "*";

/// The directories that a value names; each must be one of `log_dirs`.
pub fn cordoned(log_dirs: &[PathBuf], value: &str) -> Result<Vec<PathBuf>, ConfigError> {
    let unmet = |what: String| Err(ConfigError::Contradiction(format!("requirement failed: {what}")));
    let named: Vec<&str> = split_list(value).collect();
    if named.contains(&ALL) {
        return match named[..] {
            [_] => Ok(log_dirs.to_vec()),
            _ => unmet("When cordoned.log.dirs is set to *, it must not contain other values".to_owned()),
        };
    }
    let is_missing = |name: &&str| !log_dirs.iter().any(|path| path == Path::new(name));
    let missing: Vec<_> = named.iter().copied().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(named.into_iter().map(PathBuf::from).collect());
    }
    unmet(format!(
        "All entries in cordoned.log.dirs must be present in log.dirs or log.dir. Missing entries : {}",
        missing.join(",")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cordoned_directories_are_some_of_the_log_directories() {
        let log_dirs = [PathBuf::from("/a"), PathBuf::from("/b")];
        let cordoned = |value| cordoned(&log_dirs, value).map_err(|error| error.to_string());
        assert_eq!(cordoned(""), Ok(Vec::new()));
        assert_eq!(cordoned("/b"), Ok(vec![PathBuf::from("/b")]));
        assert_eq!(cordoned("*"), Ok(log_dirs.to_vec()));
        assert!(cordoned("/b, /c,/d").unwrap_err().ends_with("Missing entries : /c,/d"));
        assert!(cordoned("*,/b").unwrap_err().contains("must not contain other values"));
    }
}
