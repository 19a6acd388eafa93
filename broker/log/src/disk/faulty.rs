//! A disk in memory that fails as disks do: for tests and for the simulator.
//!
//! A crash loses what was not synced: of each file's unsynced writes a prefix may have come through, the last of them torn;
//! of each folder's unsynced changes likewise. Any operation can be made to fail, and the disk can fill up. After a sync that
//! failed, what it was to write is gone from what a later sync writes, though it reads back until the machine goes down: so
//! does Linux.
//!
//! Names, contents and what is pending are shared with copies of the disk until either side changes them: a look at a copy is cheap.

mod names;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use self::names::{Name, NameChange, Names};
use super::{DirectoryEntry, Disk, DiskFile, FileLock, SharedFile, SyncToken};

/// What a crash leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process died, the machine lives: everything is there, and what was not synced still is not.
    KeepAll,
    /// Nothing.
    LoseUnsynced,
    /// Of each file and folder a part, drawn from this seed; the last write that came through is torn.
    Tear(u64),
}

/// What a fault may hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Operation {
    Open,
    Create,
    Write,
    Read,
    Truncate,
    Rename,
    Remove,
    List,
    Sync,
    SyncDirectory,
}

/// Decides whether an operation on a path fails.
pub type Fault = Box<dyn FnMut(Operation, &Path) -> Option<io::Error> + Send>;

type StopAt = Box<dyn FnMut(Operation, &Path) -> bool + Send>;

/// The disk; clones are the same disk.
#[derive(Clone, Default)]
pub struct FaultyDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By their numbers. A node stays, also when its last name is gone: it may be open.
    nodes: Arc<Vec<Node>>,
    names: Arc<Names>,
    durable_names: Arc<Names>,
    /// Changes of names that no sync of their folder has made durable.
    pending: Vec<(Name, NameChange)>,
    locked: BTreeSet<PathBuf>,
    fault: Option<Fault>,
    capacity: Option<u64>,
    mutations: u64,
    stop: Option<Stop>,
    /// Whether a sync has failed, and what it was to write with it.
    lost_writes: bool,
    /// Counts crashes: what was open before is of no use after.
    boots: u64,
}

/// When the machine or the process stops.
enum Stop {
    /// At the change that follows so many others.
    After(u64),
    /// At the first call of which this is true.
    At(StopAt),
    /// It has.
    Now,
}

#[derive(Default, Clone)]
struct Node {
    content: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    pending: Vec<ContentChange>,
    modified_ms: u64,
}

#[derive(Clone)]
enum ContentChange {
    Write(u64, Arc<[u8]>),
    Truncate(u64),
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    path: PathBuf,
    node: usize,
    boot: u64,
}

struct Unlock(FaultyDisk, PathBuf);

impl FaultyDisk {
    /// An empty disk without faults and without end.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks `fault` before every operation from now on.
    pub fn set_fault(&self, fault: impl FnMut(Operation, &Path) -> Option<io::Error> + Send + 'static) {
        self.state().fault = Some(Box::new(fault));
    }

    /// No more faults.
    pub fn clear_fault(&self) {
        self.state().fault = None;
    }

    /// Lets files hold so many bytes altogether; more fails as on a full disk.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// How many bytes files hold altogether.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// How many operations have changed something so far: each is a place to crash at.
    pub fn mutations(&self) -> u64 {
        self.state().mutations
    }

    /// The machine stops at the change that follows so many others: it and everything after it fails until
    /// [`FaultyDisk::crash`]. Part of that change may come through.
    pub fn stop_after(&self, mutations: u64) {
        self.state().stop = Some(Stop::After(mutations));
    }

    /// The same at the first call of which `is_reached` is true, of which nothing comes through.
    pub fn stop_at(&self, is_reached: impl FnMut(Operation, &Path) -> bool + Send + 'static) {
        self.state().stop = Some(Stop::At(Box::new(is_reached)));
    }

    /// It does not stop after all.
    pub fn go_on(&self) {
        self.state().stop = None;
    }

    /// Whether the machine has stopped.
    pub fn is_off(&self) -> bool {
        self.state().is_off()
    }

    /// Whether a sync has failed since the last crash: what it was to write reads back, and is on no disk.
    pub fn has_lost_writes(&self) -> bool {
        self.state().lost_writes
    }

    /// Whether nothing that was written to a file is in memory only.
    pub fn is_synced(&self, path: &Path) -> bool {
        let state = self.state();
        state.names.file(&Name::of(path)).is_none_or(|node| state.node(node).pending.is_empty())
    }

    /// A copy to look at: what is done to it is not done to this disk. Nothing in it fails.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.state();
        Self(Arc::new(Mutex::new(State {
            nodes: Arc::clone(&state.nodes),
            names: Arc::clone(&state.names),
            durable_names: Arc::clone(&state.durable_names),
            pending: state.pending.clone(),
            mutations: state.mutations,
            boots: state.boots,
            ..State::default()
        })))
    }

    /// The machine goes down and comes up again. Files that were open are dead; locks are free.
    pub fn crash(&self, crash: Crash) {
        self.state().crash(crash);
    }

    /// Flips bits of a byte that is on the disk, unseen by anybody.
    pub fn corrupt(&self, path: &Path, position: u64, flip: u8) {
        let mut state = self.state();
        let node = state.names.file(&Name::of(path)).expect("the file to corrupt exists");
        let node = state.node_mut(node);
        Arc::make_mut(&mut node.content)[position as usize] ^= flip;
        if let Some(byte) = Arc::make_mut(&mut node.durable).get_mut(position as usize) {
            *byte ^= flip;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for FaultyDisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FaultyDisk")
    }
}

impl Node {
    fn make_durable(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let durable = Arc::make_mut(&mut self.durable);
        for change in self.pending.drain(..) {
            change.apply(durable);
        }
    }
}

impl ContentChange {
    fn apply(self, content: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => write(content, at, &bytes),
            Self::Truncate(len) => content.resize(len as usize, 0),
        }
    }
}

impl State {
    fn check(&mut self, operation: Operation, path: &Path) -> io::Result<()> {
        if let Some(Stop::At(is_reached)) = &mut self.stop
            && is_reached(operation, path)
        {
            self.stop = Some(Stop::Now);
        }
        if self.is_off() {
            return Err(io::Error::other("the machine is off"));
        }
        match self.fault.as_mut().and_then(|fault| fault(operation, path)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Counts a change that was just made; the one at which the machine stops has happened and is not answered.
    fn changed(&mut self) -> io::Result<()> {
        self.mutations += 1;
        if self.is_off() { Err(io::Error::other("the machine went off")) } else { Ok(()) }
    }

    fn is_off(&self) -> bool {
        matches!(self.stop, Some(Stop::Now)) || matches!(self.stop, Some(Stop::After(limit)) if self.mutations > limit)
    }

    fn name(&mut self, folder: Name, change: NameChange) -> io::Result<()> {
        Arc::make_mut(&mut self.names).apply(&change);
        // What is pending inside of a folder goes where the folder goes: another one may have its name next.
        match &change {
            NameChange::Rename(from, to) => {
                for (of, inside) in self.pending.iter_mut().filter(|(of, _)| from.holds(of)) {
                    of.follow(from, to);
                    inside.follow(from, to);
                }
            }
            NameChange::RemoveFolder(name) => self.pending.retain(|(of, _)| !name.holds(of)),
            NameChange::Folder(_) | NameChange::Set(..) | NameChange::Remove(_) => {}
        }
        self.pending.push((folder, change));
        self.changed()
    }

    fn node(&self, id: usize) -> &Node {
        &self.nodes[id]
    }

    fn node_mut(&mut self, id: usize) -> &mut Node {
        &mut Arc::make_mut(&mut self.nodes)[id]
    }

    fn sync_folder(&mut self, folder: &Name) {
        // An earlier folder of this name is out of its way before, with all that its parent was changed by until then.
        let parent = folder.parent();
        let is_away = |(of, change): &(Name, NameChange)| *of == parent && change.takes_away() == Some(folder);
        if let Some(last) = self.pending.iter().rposition(is_away) {
            for (_, change) in self.pending.extract_if(..=last, |(of, _)| *of == parent) {
                Arc::make_mut(&mut self.durable_names).apply(&change);
            }
        }
        for (_, change) in self.pending.extract_if(.., |(of, _)| of == folder) {
            Arc::make_mut(&mut self.durable_names).apply(&change);
        }
    }

    fn crash(&mut self, crash: Crash) {
        self.locked.clear();
        self.stop = None;
        self.fault = None;
        self.boots += 1;
        let mut random = match crash {
            Crash::KeepAll => return,
            Crash::LoseUnsynced => 0,
            Crash::Tear(seed) => seed ^ 0x9e37_79b9_7f4a_7c15,
        };
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        self.lost_writes = false;
        let pending = std::mem::take(&mut self.pending);
        let mut kept: HashMap<Name, u64> = HashMap::new();
        for (folder, _) in &pending {
            *kept.entry(folder.clone()).or_default() += 1;
        }
        let mut folders: Vec<_> = kept.iter_mut().collect();
        folders.sort();
        for (_, count) in folders {
            *count = if crash == Crash::LoseUnsynced { 0 } else { below(*count + 1) };
        }
        let durable_names = Arc::make_mut(&mut self.durable_names);
        // Folders that are back under names that others have had since: nothing of those comes into them.
        let mut back: Vec<Name> = Vec::new();
        for (folder, change) in pending {
            let left = kept.get_mut(&folder).expect("every folder was counted");
            if *left > 0 && !back.iter().any(|name| name.holds(&folder)) {
                *left -= 1;
                durable_names.apply(&change);
            } else {
                *left = 0;
                back.extend(change.takes_away().cloned());
            }
        }
        durable_names.forget_unreached();
        self.names = Arc::clone(&self.durable_names);
        for node in Arc::make_mut(&mut self.nodes) {
            let changes = std::mem::take(&mut node.pending);
            let through = if crash == Crash::LoseUnsynced { 0 } else { below(changes.len() as u64 + 1) };
            for (index, change) in changes.into_iter().take(through as usize).enumerate() {
                let durable = Arc::make_mut(&mut node.durable);
                match change {
                    ContentChange::Write(at, bytes) if index as u64 + 1 == through => {
                        let len = below(bytes.len() as u64 + 1) as usize;
                        write(durable, at, &bytes[..len]);
                    }
                    change => change.apply(durable),
                }
            }
            node.content = Arc::clone(&node.durable);
        }
    }

    fn used(&self) -> u64 {
        self.names.nodes().map(|id| self.node(id).content.len() as u64).sum()
    }
}

fn write(content: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let end = at as usize + bytes.len();
    if at == content.len() as u64 {
        return content.extend_from_slice(bytes);
    }
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at as usize..end].copy_from_slice(bytes);
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<SharedFile> {
        let mut state = self.state();
        state.check(Operation::Open, path)?;
        let node = state.names.file(&Name::of(path)).ok_or_else(|| not_found(path))?;
        Ok(Arc::new(FaultyFile { disk: self.clone(), path: path.to_owned(), node, boot: state.boots }))
    }

    fn create(&self, path: &Path) -> io::Result<SharedFile> {
        let mut state = self.state();
        state.check(Operation::Create, path)?;
        let name = Name::of(path);
        let folder = name.parent();
        if !folder.is_root() && !state.names.has_folder(&folder) {
            return Err(not_found(path.parent().unwrap_or(path)));
        }
        let node = if let Some(id) = state.names.file(&name) {
            let node = state.node_mut(id);
            node.content = Arc::default();
            node.pending.push(ContentChange::Truncate(0));
            state.changed()?;
            id
        } else {
            let node = state.nodes.len();
            Arc::make_mut(&mut state.nodes).push(Node::default());
            state.name(folder, NameChange::Set(name, node))?;
            node
        };
        Ok(Arc::new(FaultyFile { disk: self.clone(), path: path.to_owned(), node, boot: state.boots }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check(Operation::Rename, from)?;
        let name = Name::of(from);
        if state.names.file(&name).is_none() && !state.names.has_folder(&name) {
            return Err(not_found(from));
        }
        state.name(name.parent(), NameChange::Rename(name, Name::of(to)))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check(Operation::Remove, path)?;
        let name = Name::of(path);
        if state.names.file(&name).is_none() {
            return Err(not_found(path));
        }
        state.name(name.parent(), NameChange::Remove(name))
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check(Operation::Remove, path)?;
        let name = Name::of(path);
        if !state.names.has_folder(&name) {
            return Err(not_found(path));
        }
        state.name(name.parent(), NameChange::RemoveFolder(name))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check(Operation::Create, path)?;
        let folders = path.ancestors().map(Name::of).take_while(|folder| !folder.is_root());
        let missing: Vec<_> = folders.filter(|folder| !state.names.has_folder(folder)).collect();
        for folder in missing.into_iter().rev() {
            state.name(folder.parent(), NameChange::Folder(folder))?;
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirectoryEntry>> {
        let mut state = self.state();
        state.check(Operation::List, path)?;
        let folder = Name::of(path);
        if !state.names.has_folder(&folder) {
            return Err(not_found(path));
        }
        let files = state.names.files_in(&folder).map(|(name, node)| DirectoryEntry {
            name,
            is_directory: false,
            len: state.node(node).content.len() as u64,
        });
        let folders = state.names.folders_in(&folder).map(|name| DirectoryEntry { name, is_directory: true, len: 0 });
        Ok(files.chain(folders).collect())
    }

    fn sync_directory(&self, path: &Path) -> SyncToken {
        let (disk, path, boot) = (self.clone(), path.to_owned(), self.state().boots);
        SyncToken::new(move || {
            let mut state = disk.state();
            state.check(Operation::SyncDirectory, &path)?;
            if state.boots != boot {
                return Err(io::Error::other("the machine went off in between"));
            }
            state.sync_folder(&Name::of(&path));
            state.changed()
        })
    }

    fn sync_file_system(&self, path: &Path) -> SyncToken {
        let (disk, path, boot) = (self.clone(), path.to_owned(), self.state().boots);
        SyncToken::new(move || {
            let mut state = disk.state();
            state.check(Operation::Sync, &path)?;
            if state.boots != boot {
                return Err(io::Error::other("the machine went off in between"));
            }
            Arc::make_mut(&mut state.nodes).iter_mut().for_each(Node::make_durable);
            state.pending.clear();
            state.durable_names = Arc::clone(&state.names);
            state.changed()
        })
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<FileLock>> {
        if self.state().names.file(&Name::of(path)).is_none() {
            self.create(path)?;
        }
        if !self.state().locked.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(FileLock::new(path.to_owned(), Unlock(self.clone(), path.to_owned()))))
    }
}

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.state().locked.remove(&self.1);
    }
}

impl FaultyFile {
    fn state(&self, operation: Operation) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.state();
        state.check(operation, &self.path)?;
        if state.boots != self.boot {
            return Err(io::Error::other("the file was opened before the crash"));
        }
        Ok(state)
    }
}

impl DiskFile for FaultyFile {
    fn write_all_at(&self, slices: &mut [IoSlice<'_>], position: u64) -> io::Result<()> {
        let mut state = self.state(Operation::Write)?;
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
        for slice in slices.iter() {
            bytes.extend_from_slice(slice);
        }
        let grows = (position + bytes.len() as u64).saturating_sub(state.node(self.node).content.len() as u64);
        let room = state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used()));
        let full = grows > room;
        if full {
            bytes.truncate(bytes.len().saturating_sub((grows - room) as usize));
        }
        let mutations = state.mutations;
        let node = state.node_mut(self.node);
        write(Arc::make_mut(&mut node.content), position, &bytes);
        node.modified_ms = mutations;
        node.pending.push(ContentChange::Write(position, bytes.into()));
        state.changed()?;
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let state = self.state(Operation::Read)?;
        let content = &state.node(self.node).content;
        let start = (position as usize).min(content.len());
        let len = buffer.len().min(content.len() - start);
        buffer[..len].copy_from_slice(&content[start..start + len]);
        Ok(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state(Operation::Read)?.node(self.node).content.len() as u64)
    }

    fn modified(&self) -> io::Result<SystemTime> {
        Ok(UNIX_EPOCH + Duration::from_millis(self.state(Operation::Read)?.node(self.node).modified_ms))
    }

    fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.state(Operation::Read)?.node_mut(self.node).modified_ms = since_epoch.as_millis() as u64;
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.state(Operation::Truncate)?;
        let node = state.node_mut(self.node);
        Arc::make_mut(&mut node.content).resize(len as usize, 0);
        node.pending.push(ContentChange::Truncate(len));
        state.changed()
    }

    fn sync(self: Arc<Self>) -> SyncToken {
        SyncToken::new(move || {
            let checked = self.state(Operation::Sync).map(drop);
            let mut state = self.disk.state();
            if let Err(error) = checked {
                // Who is off has no answer: what it wrote is pending yet.
                if state.boots == self.boot && !state.is_off() {
                    state.node_mut(self.node).pending.clear();
                    state.lost_writes = true;
                }
                return Err(error);
            }
            state.node_mut(self.node).make_durable();
            state.changed()
        })
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
