//! What a disk in memory knows by name: its files and folders, and how each change of a name changes them.
//!
//! The disk keeps them twice: as they read now, and as a loss of power would leave them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A path as a key: compared byte by byte, what is inside a folder stands right behind it, in the order in which paths compare by their
/// parts, which costs more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name(Arc<[u8]>);

/// Less than any other byte of a name.
const SEPARATOR: u8 = 0;

/// Files with the numbers of their nodes, and folders.
#[derive(Debug, Default, Clone)]
pub(super) struct Names {
    files: BTreeMap<Name, usize>,
    folders: BTreeSet<Name>,
}

/// A change that a sync of the folder makes durable.
#[derive(Debug, Clone)]
pub(super) enum NameChange {
    Folder(Name),
    Set(Name, usize),
    Remove(Name),
    RemoveFolder(Name),
    Rename(Name, Name),
}

impl Name {
    pub(super) fn of(path: &Path) -> Self {
        let bytes = path.as_os_str().as_bytes();
        let is_plain = |pair: &[u8]| pair[0] != b'/' || (pair[1] != b'/' && pair[1] != b'.');
        if bytes.ends_with(b"/") || !bytes.windows(2).all(is_plain) {
            let parts: PathBuf = path.components().collect();
            return Self::plain(parts.as_os_str().as_bytes());
        }
        Self::plain(bytes)
    }

    fn plain(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| if *byte == b'/' { SEPARATOR } else { *byte }).collect())
    }

    /// The folder that it is in.
    pub(super) fn parent(&self) -> Self {
        let parent = self.separator().filter(|at| *at > 0).map_or(&[SEPARATOR][..], |at| &self.0[..at]);
        Self(parent.into())
    }

    pub(super) fn is_root(&self) -> bool {
        *self.0 == [SEPARATOR]
    }

    /// Whether it is the root, or in it: there a disk may be mounted.
    fn is_mount(&self) -> bool {
        self.separator() == Some(0)
    }

    fn separator(&self) -> Option<usize> {
        self.0.iter().rposition(|byte| *byte == SEPARATOR)
    }

    /// What a name inside this folder is called from there on, with the separator; nothing for this name itself.
    fn rest<'n>(&self, name: &'n Self) -> Option<&'n [u8]> {
        name.0.strip_prefix(&*self.0).filter(|rest| rest.first().is_none_or(|byte| *byte == SEPARATOR))
    }

    /// Whether it is this folder, or in it.
    pub(super) fn holds(&self, name: &Self) -> bool {
        self.rest(name).is_some()
    }

    /// Its name once a folder that it is in has another name.
    pub(super) fn follow(&mut self, from: &Self, to: &Self) {
        if let Some(rest) = from.rest(self) {
            *self = Self([&*to.0, rest].concat().into());
        }
    }

    /// What a name right in this folder is called.
    fn last(&self, name: &Self) -> Option<String> {
        let last = self.rest(name)?.strip_prefix(&[SEPARATOR])?;
        (!last.contains(&SEPARATOR)).then(|| String::from_utf8_lossy(last).into_owned())
    }
}

impl NameChange {
    /// The folder, or file, of whose name there is nothing any more.
    pub(super) const fn takes_away(&self) -> Option<&Name> {
        match self {
            Self::Rename(name, _) | Self::RemoveFolder(name) => Some(name),
            Self::Folder(_) | Self::Set(..) | Self::Remove(_) => None,
        }
    }

    /// The same change once a folder that it is in has another name.
    pub(super) fn follow(&mut self, from: &Name, to: &Name) {
        let names = match self {
            Self::Folder(name) | Self::Set(name, _) | Self::Remove(name) | Self::RemoveFolder(name) => {
                [Some(name), None]
            }
            Self::Rename(name, other) => [Some(name), Some(other)],
        };
        for name in names.into_iter().flatten() {
            name.follow(from, to);
        }
    }
}

impl Names {
    /// The node of a file.
    pub(super) fn file(&self, name: &Name) -> Option<usize> {
        self.files.get(name).copied()
    }

    /// The nodes of all files.
    pub(super) fn nodes(&self) -> impl Iterator<Item = usize> {
        self.files.values().copied()
    }

    pub(super) fn has_folder(&self, name: &Name) -> bool {
        self.folders.contains(name)
    }

    /// The files right in a folder.
    pub(super) fn files_in(&self, folder: &Name) -> impl Iterator<Item = (String, usize)> {
        self.files_inside(folder).filter_map(|(file, node)| Some((folder.last(file)?, *node)))
    }

    /// The folders right in a folder.
    pub(super) fn folders_in(&self, folder: &Name) -> impl Iterator<Item = String> {
        self.folders_inside(folder).filter_map(|name| folder.last(name))
    }

    /// A file of this name, and those in a folder of this name, however deep.
    fn files_inside(&self, name: &Name) -> impl Iterator<Item = (&Name, &usize)> {
        let behind = self.files.range((Bound::Included(name), Bound::Unbounded));
        behind.take_while(|(file, _)| name.rest(file).is_some())
    }

    fn folders_inside(&self, name: &Name) -> impl Iterator<Item = &Name> {
        let behind = self.folders.range((Bound::Included(name), Bound::Unbounded));
        behind.take_while(|folder| name.rest(folder).is_some())
    }

    pub(super) fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Folder(name) => {
                self.folders.insert(name.clone());
            }
            NameChange::Set(name, node) => {
                self.files.insert(name.clone(), *node);
            }
            NameChange::Remove(name) => {
                self.files.remove(name);
            }
            NameChange::RemoveFolder(name) => {
                let files: Vec<_> = self.files_inside(name).map(|(file, _)| file.clone()).collect();
                let folders: Vec<_> = self.folders_inside(name).cloned().collect();
                for file in files {
                    self.files.remove(&file);
                }
                for folder in folders {
                    self.folders.remove(&folder);
                }
            }
            NameChange::Rename(from, to) => {
                if let Some(node) = self.files.remove(from) {
                    self.files.insert(to.clone(), node);
                }
                let moved = |name: &Name| Name([&*to.0, from.rest(name).unwrap_or_default()].concat().into());
                let files: Vec<_> = self.files_inside(from).map(|(file, _)| file.clone()).collect();
                let folders: Vec<_> = self.folders_inside(from).cloned().collect();
                for file in files {
                    if let Some(node) = self.files.remove(&file) {
                        self.files.insert(moved(&file), node);
                    }
                }
                for folder in folders {
                    self.folders.remove(&folder);
                    self.folders.insert(moved(&folder));
                }
            }
        }
    }

    /// Forgets what nobody comes to: what was made durable in a folder whose own name was not.
    pub(super) fn forget_unreached(&mut self) {
        let mut reached = BTreeSet::new();
        for folder in &self.folders {
            let parent = folder.parent();
            if parent.is_mount() || reached.contains(&parent) {
                reached.insert(folder.clone());
            }
        }
        self.files.retain(|name, _| {
            let parent = name.parent();
            parent.is_mount() || reached.contains(&parent)
        });
        self.folders = reached;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Crash, Disk as _, FaultyDisk};

    #[test]
    fn a_name_is_the_same_however_its_path_is_spelled() {
        for spelled in ["/data//a-0/./x", "/data/a-0/x/", "/data/a-0/x/."] {
            assert_eq!(Name::of(Path::new(spelled)), Name::of(Path::new("/data/a-0/x")), "{spelled}");
        }
        assert_eq!(Name::of(Path::new("/data")).parent(), Name::of(Path::new("/")));
    }

    #[test]
    fn what_is_synced_in_a_folder_stays_there_though_another_had_its_name() {
        let disk = FaultyDisk::new();
        let sync = |path: &str| disk.sync_directory(Path::new(path)).complete().unwrap();
        let make = |folder: &str, file: &str| {
            disk.create_directory(Path::new(folder)).unwrap();
            disk.create(&Path::new(folder).join(file)).unwrap();
        };
        make("/data/a", "old");
        sync("/");
        sync("/data");
        sync("/data/a");
        disk.rename(Path::new("/data/a"), Path::new("/data/b")).unwrap();
        make("/data/a", "new");
        sync("/data/a");
        sync("/data");
        disk.crash(Crash::LoseUnsynced);
        let names = |folder: &str| {
            let listed = disk.list(Path::new(folder)).unwrap().into_iter();
            listed.map(|entry| entry.name).collect::<Vec<_>>()
        };
        assert_eq!((names("/data/a"), names("/data/b")), (vec!["new".to_owned()], vec!["old".to_owned()]));
    }

    #[test]
    fn names_stand_in_the_order_of_paths() {
        let paths = ["/a", "/a/b", "/a/b/c", "/a/b-c", "/a/b.c", "/a-b", "/a b/c", "/ab"].map(Path::new);
        for one in paths {
            for other in paths {
                assert_eq!(
                    Name::of(one).cmp(&Name::of(other)),
                    one.cmp(other),
                    "{} {}",
                    one.display(),
                    other.display()
                );
                let inside = Name::of(one).rest(&Name::of(other)).is_some();
                assert_eq!(inside, other.starts_with(one), "{} {}", one.display(), other.display());
            }
        }
    }
}
