//! The checkpoint files of a log directory: each is written where it would say something else, one at a time.

use std::{collections::HashMap, sync::PoisonError};

use gregor_log::CheckpointKind;
use gregor_types::{Offset, TopicPartition};

use super::Directory;

/// What the checkpoint files say, so that nothing is written where nothing changed.
#[derive(Debug, Default)]
pub(super) struct Written {
    files: HashMap<CheckpointKind, Vec<(TopicPartition, Offset)>>,
    /// Logs that were cut off since their recovery points were written down, and where: whoever writes them next may have asked before that.
    cut: HashMap<TopicPartition, Offset>,
}

impl Directory {
    /// Replaces a checkpoint file, unless it says the same already. False where it could not be, and may be later.
    pub(crate) fn checkpoint(&self, kind: CheckpointKind, mut entries: Vec<(TopicPartition, Offset)>) -> bool {
        if self.is_failed() {
            return true;
        }
        entries.sort_unstable();
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if kind == CheckpointKind::RecoveryPoint {
            for (name, offset) in &mut entries {
                *offset = written.cut.get(name).map_or(*offset, |cut| *cut.min(offset));
            }
        }
        if written.files.get(&kind) == Some(&entries) {
            return true;
        }
        match self.with(|directory| directory.write_checkpoint(kind, entries.iter().cloned())) {
            Ok(()) => {
                written.files.insert(kind, entries);
                if kind == CheckpointKind::RecoveryPoint {
                    written.cut.clear();
                }
                true
            }
            Err(error) => {
                self.on_error(&self.path.display(), &error);
                self.is_failed()
            }
        }
    }

    /// A log of it was cut off, and is known to be on the disk up to there only: its checkpoint says no more before anything is appended.
    pub(crate) fn lower_recovery_point(&self, name: TopicPartition, to: Offset) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.with(|directory| directory.lower_recovery_point(&name, to)) {
            self.on_error(&name, &error);
        }
        written.files.remove(&CheckpointKind::RecoveryPoint);
        written.cut.insert(name, to);
    }
}
