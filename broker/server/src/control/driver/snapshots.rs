//! Snapshots of the metadata that this node makes by itself, and what they let go of.

use std::sync::Arc;

use gregor_types::Offset;

use super::{Driver, MILLISECOND};
use crate::control::{ControlError, handle::Command, metadata_log::Retention, snapshots::SnapshotJob};

impl Driver {
    /// Begins a snapshot if enough was appended, or enough time has passed, since the last one.
    pub(super) fn snapshot_if_due(&mut self) {
        let config = &self.options.config;
        let now = self.now();
        let bytes_max = config.metadata_log_max_record_bytes_between_snapshots.max(1).unsigned_abs();
        let interval = config.metadata_log_max_snapshot_interval_ms.max(0).unsigned_abs() * MILLISECOND;
        let enough_time = interval > 0 && now.monotonic >= self.last_snapshot + interval;
        if self.replay.bytes_since_snapshot() < bytes_max && !enough_time {
            return;
        }
        if self.snapshot.is_some() || self.replay.image().in_transaction() {
            return;
        }
        self.last_snapshot = now.monotonic;
        let id = self.replay.snapshot_id();
        if self.replay.bytes_since_snapshot() == 0 || self.quorum.high_watermark() != Some(id.offset) {
            return;
        }
        self.replay.snapshot_begun();
        let (kraft_version, voters) = self.quorum.history().at(id.offset);
        let job = SnapshotJob {
            disk: Arc::clone(self.log.disk()),
            partition: self.log.partition().to_owned(),
            id,
            image: self.replay.image().clone(),
            kraft_version,
            voters: voters.clone(),
            last_contained: self.replay.last_timestamp(),
            now: now.wall,
        };
        let commands = self.handle.commands.clone();
        let work = move || {
            let result = job.write();
            let written =
                result.inspect_err(|error| tracing::error!(%error, "a metadata snapshot was not written")).ok();
            // A node that is stopping finds the snapshot at its next start.
            let _ = commands.blocking_send(Command::SnapshotWritten(written));
        };
        match self.surroundings.beside("gregor-snapshot", Box::new(work)) {
            Ok(thread) => self.snapshot = thread,
            Err(error) => tracing::error!(%error, "no thread to write a metadata snapshot"),
        }
    }

    /// Waits for a snapshot that is under way: once the node says that it stopped, nothing of it writes any more.
    pub(super) fn end_snapshot(&mut self) {
        // Its news would find nobody, and must not wait for room either.
        self.commands.close();
        if let Some(thread) = self.snapshot.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that wrote a metadata snapshot panicked");
        }
    }

    pub(super) fn clean(&mut self) -> Result<(), ControlError> {
        let config = &self.options.config;
        let retention =
            Retention { bytes: config.metadata_max_retention_bytes, milliseconds: config.metadata_max_retention_ms };
        let high_watermark = self.quorum.high_watermark().unwrap_or(Offset::ZERO);
        self.log.clean(retention, high_watermark, self.now().wall)?;
        Ok(())
    }
}
