//! Bugs that are planted on purpose, so that the simulator proves that it finds them.
//!
//! Compiled in by `--cfg gregor_planted` alone, never by a feature: no build that anybody runs has them, and there
//! [`planted`] is a constant `false`. With it, a test chooses one bug at run time for its own thread.

/// Every bug of one node that can be planted, by name, and what it does.
pub const BUGS: [(&str, &str); 23] = [
    ("ack-before-fsync", "the high watermark does not wait for the sync that flush.messages=1 promises"),
    ("metadata-ack-before-fsync", "the metadata log's records count as durable before they are synced"),
    ("torn-tail-kept", "every stop is taken for a clean one, and so a torn tail for records"),
    ("producers-not-restored", "a start forgets the producers of a log"),
    ("duplicate-accepted", "a batch that is sent again is appended again"),
    ("index-leads-log", "an index entry points behind the batch that it is for"),
    ("sealed-segment-unsynced", "a flush syncs the active segment only"),
    ("folder-unsynced", "a flush does not sync the folder of the files that it made"),
    ("sync-error-ignored", "a sync that failed counts as one that succeeded"),
    ("recovery-point-past-unsynced", "a flush counts what was appended while it ran as synced"),
    ("aborted-not-indexed", "an aborted transaction is not written to the index that readers look into"),
    ("last-stable-too-high", "a reader of committed records sees up to the high watermark"),
    ("log-start-forgotten", "a start does not know which records were deleted"),
    ("commit-answered-early", "a coordinator answers before its records are committed"),
    ("epochs-not-recovered", "a recovery does not look which leader epochs the batches have"),
    ("rot-served", "what the disk has damaged is served without a look at its checksum"),
    ("generation-kept", "a rebalance does not count the group's generation up"),
    ("retention-too-early", "a segment is deleted although the log's start lies within it"),
    ("settings-not-taken-over", "a log goes on by the settings that it was opened with"),
    ("retention-beyond-size", "retention by size deletes a segment of which a part is still wanted"),
    ("cleaned-not-newest", "the cleaner keeps all but the newest record of a key"),
    ("unstable-cleaned", "the cleaner goes over what an open transaction has written"),
    ("cleaned-unsynced", "a cleaned segment takes its place before it is on the disk"),
];

/// Every bug of clusters that can be planted, likewise: of the quorum, of the controller, and of leaders and followers.
pub const CLUSTER_BUGS: [(&str, &str); 30] = [
    ("vote-before-persist", "a vote is answered before it is on the disk"),
    ("two-votes-in-an-epoch", "a voter gives its vote to a second candidate of an epoch"),
    ("shorter-log-elected", "a voter does not look whether a candidate has all that it has itself"),
    ("half-elects", "half of the voters elect a leader"),
    ("leader-awaited-too-long", "a voter whose leader is silent waits for it far longer than it should"),
    ("majority-not-awaited", "the metadata log's records are committed once one voter has them"),
    ("earlier-epoch-committed", "a new leader commits what others wrote before something of its own"),
    ("metadata-divergence-unchecked", "a leader does not look whether a follower's metadata log is a part of its own"),
    ("metadata-fetched-unsynced", "a follower says that it has metadata that is not on its disk"),
    ("cut-voters-kept", "a change of voters stays although the metadata log was cut before it"),
    ("cut-metadata-shown", "records that are cut off the metadata log stay in the image"),
    ("snapshot-beside-log", "a snapshot of the leader is loaded, and the log stays what it was"),
    ("snapshot-voters-ignored", "the voters in a snapshot of the leader are not taken note of"),
    ("decides-too-early", "a new controller decides before it knows that all before it is committed"),
    ("fenced-stays-in-sync", "a broker that is fenced leads on, and stays in the in-sync replicas"),
    ("fenced-elected", "a broker that is fenced is elected"),
    ("unclean-election", "a replica is elected that is not in sync, though nobody allows it"),
    ("moved-too-early", "replicas are let go before those are in sync that take their place"),
    ("followers-not-awaited", "the high watermark does not wait for the followers in sync"),
    ("leader-epoch-unchecked", "a leader answers a follower that asks for another leadership's records"),
    ("joins-while-behind", "a follower is taken for in sync that lacks what is committed"),
    ("shrinks-by-itself", "a leader drops a follower from the in-sync replicas before the controller has agreed"),
    ("committed-behind-the-end", "a follower takes for committed what it does not have yet"),
    ("cut-to-high-watermark", "a follower of another leader cuts its log to the high watermark that it knows"),
    (
        "eligible-while-enough",
        "who left the in-sync replicas stays eligible to lead though enough are left to go on without it",
    ),
    (
        "eligible-cleared",
        "a partition that is led forgets its eligible replicas though too few are in sync to go on without them",
    ),
    ("unclean-stop-unnoticed", "a broker that may have lost what it had counts as one that stopped in peace"),
    ("earlier-life-joins", "the controller does not look which life of a broker is to be in sync"),
    ("committed-by-too-few", "the high watermark moves on with fewer in sync than a record needs to be acknowledged"),
    ("cut-epochs-kept", "the leader epochs of records stay although the log was cut before them"),
];

/// Whether this bug is planted here and now.
#[cfg(not(gregor_planted))]
#[inline]
pub const fn planted(_name: &str) -> bool {
    false
}

/// Whether this bug is planted here and now.
#[cfg(gregor_planted)]
pub fn planted(name: &str) -> bool {
    let mut known = BUGS.iter().chain(&CLUSTER_BUGS);
    debug_assert!(known.any(|(known, _)| *known == name), "{name} is not in the lists of bugs");
    PLANTED.get() == Some(name)
}

/// Plants a bug for all that the calling thread does from now on, or none.
#[cfg(gregor_planted)]
pub fn plant(name: Option<&'static str>) {
    PLANTED.set(name);
}

#[cfg(gregor_planted)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}
