//! What a disk in memory knows by name: its files and folders, and how each change of a name changes them.
//!
//! The disk keeps them twice: as they read now, and as a loss of power would leave them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    path::{Path, PathBuf},
};

/// Files with the numbers of their nodes, and folders. In this order what is inside a folder stands right behind it.
#[derive(Debug, Default, Clone)]
pub(super) struct Names {
    files: BTreeMap<PathBuf, u64>,
    folders: BTreeSet<PathBuf>,
}

/// A change that a sync of the folder makes durable.
#[derive(Debug, Clone)]
pub(super) enum NameChange {
    Folder(PathBuf),
    Set(PathBuf, u64),
    Remove(PathBuf),
    RemoveFolder(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl Names {
    /// The node of a file.
    pub(super) fn file(&self, path: &Path) -> Option<u64> {
        self.files.get(path).copied()
    }

    /// The nodes of all files.
    pub(super) fn nodes(&self) -> impl Iterator<Item = u64> {
        self.files.values().copied()
    }

    pub(super) fn has_folder(&self, path: &Path) -> bool {
        self.folders.contains(path)
    }

    /// The files right in a folder.
    pub(super) fn files_in(&self, folder: &Path) -> impl Iterator<Item = (&Path, u64)> {
        let inside = self.files.range::<Path, _>(from(folder)).take_while(move |(file, _)| file.starts_with(folder));
        inside.filter(move |(file, _)| parent(file) == folder).map(|(file, node)| (file.as_path(), *node))
    }

    /// The folders right in a folder.
    pub(super) fn folders_in(&self, folder: &Path) -> impl Iterator<Item = &Path> {
        let inside = self.folders.range::<Path, _>(from(folder)).take_while(move |name| name.starts_with(folder));
        inside.filter(move |name| parent(name) == folder).map(PathBuf::as_path)
    }

    pub(super) fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Folder(path) => {
                self.folders.insert(path.clone());
            }
            NameChange::Set(path, node) => {
                self.files.insert(path.clone(), *node);
            }
            NameChange::Remove(path) => {
                self.files.remove(path);
            }
            NameChange::RemoveFolder(path) => {
                let (files, folders) = self.inside(path);
                for file in files {
                    self.files.remove(&file);
                }
                for folder in folders {
                    self.folders.remove(&folder);
                }
            }
            NameChange::Rename(of, to) => {
                if let Some(node) = self.files.remove(of) {
                    self.files.insert(to.clone(), node);
                }
                let moved = |path: &Path| path.strip_prefix(of).map_or_else(|_| to.clone(), |rest| to.join(rest));
                let (files, folders) = self.inside(of);
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

    /// A file or a folder of this name, and all that is in the folder, however deep.
    fn inside(&self, path: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let files = self.files.range::<Path, _>(from(path)).map(|(file, _)| file);
        let files = files.take_while(|file| file.starts_with(path)).cloned().collect();
        let folders = self.folders.range::<Path, _>(from(path));
        (files, folders.take_while(|folder| folder.starts_with(path)).cloned().collect())
    }

    /// Forgets what nobody comes to: what was made durable in a folder whose own name was not. A folder of the root is where a disk is
    /// mounted.
    pub(super) fn forget_unreached(&mut self) {
        let root = Path::new("/");
        let is_mount = |folder: &Path| folder == root || parent(folder) == root;
        let mut reached = BTreeSet::new();
        for folder in &self.folders {
            if is_mount(parent(folder)) || reached.contains(parent(folder)) {
                reached.insert(folder.clone());
            }
        }
        self.files.retain(|name, _| is_mount(parent(name)) || reached.contains(parent(name)));
        self.folders = reached;
    }
}

/// A name and all behind it.
const fn from(path: &Path) -> (Bound<&Path>, Bound<&Path>) {
    (Bound::Included(path), Bound::Unbounded)
}

/// The folder that a name is in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}
