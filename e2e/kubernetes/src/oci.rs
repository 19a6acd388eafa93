//! Container images without a container engine: a root file system of a few files, packed as an OCI archive.
//!
//! Called for the rig's own images and by `cargo xtask images`. The same input gives the same bytes: entries are sorted,
//! and carry neither a time nor an owner. It never pulls a base image: what an image holds was put into it here.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::hash::hex;

/// The user that every image runs as.
pub const NONROOT: u32 = 65_532;

const PASSWD: &str = "root:x:0:0::/:/sbin/nologin\nnonroot:x:65532:65532::/tmp:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";

#[derive(Debug, Clone)]
enum Node {
    Folder { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Copy { mode: u32, from: PathBuf },
    Link { target: String },
}

/// An image in the making.
#[derive(Debug, Clone)]
pub struct Image {
    reference: String,
    entrypoint: Vec<String>,
    environment: Vec<String>,
    labels: BTreeMap<String, String>,
    architecture: String,
    tree: BTreeMap<String, Node>,
}

impl Image {
    /// An empty root with `/tmp`, the users `root` and `nonroot`, and nothing else; it runs `entrypoint` as `nonroot`.
    /// A reference names registry, repository and tag: `localhost/gregor:dev`.
    pub fn new(reference: &str, entrypoint: &[&str]) -> Self {
        let mut image = Self {
            reference: reference.to_owned(),
            entrypoint: entrypoint.iter().map(ToString::to_string).collect(),
            environment: vec!["PATH=/bin".to_owned()],
            labels: BTreeMap::new(),
            architecture: "amd64".to_owned(),
            tree: BTreeMap::new(),
        };
        image.put("tmp", Node::Folder { mode: 0o1777 });
        image.put("etc/passwd", Node::File { mode: 0o644, content: PASSWD.into() });
        image.put("etc/group", Node::File { mode: 0o644, content: GROUP.into() });
        image
    }

    /// The architecture in OCI's words, `amd64` or `arm64`.
    pub fn architecture(&mut self, architecture: &str) -> &mut Self {
        architecture.clone_into(&mut self.architecture);
        self
    }

    /// A variable of the environment, `NAME=value`.
    pub fn environment(&mut self, variable: &str) -> &mut Self {
        self.environment.push(variable.to_owned());
        self
    }

    /// A label, such as `org.opencontainers.image.version`.
    pub fn label(&mut self, name: &str, value: &str) -> &mut Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A program at an absolute path.
    pub fn program(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.put(path, Node::File { mode: 0o755, content: content.to_vec() });
        self
    }

    /// A plain file at an absolute path.
    pub fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.put(path, Node::File { mode: 0o644, content: content.to_vec() });
        self
    }

    /// A file of this machine at an absolute path, read only when the image is written.
    pub fn copy(&mut self, from: &Path, path: &str) -> Result<&mut Self> {
        let from = fs::canonicalize(from).with_context(|| format!("could not find {}", from.display()))?;
        let executable = fs::metadata(&from)?.permissions().mode() & 0o111 != 0;
        self.put(path, Node::Copy { mode: if executable { 0o755 } else { 0o644 }, from });
        Ok(self)
    }

    /// A folder of this machine with all below it, symbolic links kept; `keep` sees each path relative to the folder.
    pub fn copy_folder(&mut self, from: &Path, path: &str, keep: &dyn Fn(&Path) -> bool) -> Result<&mut Self> {
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let listing = from.join(&folder);
            for entry in fs::read_dir(&listing).with_context(|| format!("could not list {}", listing.display()))? {
                let entry = entry?;
                let relative = folder.join(entry.file_name());
                if !keep(&relative) {
                    continue;
                }
                let inside = format!("{path}/{}", relative.to_str().context("a file's name is not UTF-8")?);
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    folders.push(relative);
                } else if kind.is_symlink() {
                    let target = fs::read_link(entry.path())?;
                    self.link(&inside, target.to_str().context("a link's target is not UTF-8")?);
                } else if kind.is_file() {
                    self.copy(&entry.path(), &inside)?;
                }
            }
        }
        Ok(self)
    }

    /// A symbolic link at an absolute path.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.put(path, Node::Link { target: target.to_owned() });
        self
    }

    fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.tree.entry(path[..at].to_owned()).or_insert(Node::Folder { mode: 0o755 });
        }
        self.tree.insert(path.to_owned(), node);
    }

    /// Writes the archive, and returns the image's digest. containerd, Docker (`docker load`), Podman, kind, k3d and
    /// minikube all read it.
    pub fn write(&self, archive: &Path) -> Result<String> {
        let Some((_, tag)) = self.reference.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) else {
            bail!(
                "image reference {:?} has no tag; write for example {:?}",
                self.reference,
                format!("{}:dev", self.reference)
            );
        };
        let folder = archive.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
        // The layer may be hundreds of megabytes: it goes through a file, not through memory.
        let layer_file = tempfile::NamedTempFile::new_in(folder)?;
        let (layer, content_hash) = self.write_layer(layer_file.path())?;

        let config = serde_json::to_vec(&json!({
            "architecture": self.architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": self.environment,
                "Labels": self.labels,
                "User": format!("{NONROOT}:{NONROOT}"),
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{content_hash}")]},
        }))?;
        let config_blob = Blob::of(&config);
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config_blob.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
        }))?;
        let manifest_blob = Blob::of(&manifest);
        let mut entry = manifest_blob.descriptor("application/vnd.oci.image.manifest.v1+json");
        entry["annotations"] =
            json!({"io.containerd.image.name": self.reference, "org.opencontainers.image.ref.name": tag});
        let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;
        // Older Docker engines know only this list.
        let docker = serde_json::to_vec(&json!([{
            "Config": config_blob.path(), "RepoTags": [self.reference], "Layers": [layer.path()],
        }]))?;

        let unfinished = tempfile::NamedTempFile::new_in(folder)?;
        let mut tar = Builder::new(BufWriter::new(unfinished.as_file()));
        append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, &config_blob.path(), 0o644, &config)?;
        append(&mut tar, &manifest_blob.path(), 0o644, &manifest)?;
        append_from(&mut tar, &layer.path(), 0o644, layer_file.path())?;
        append(&mut tar, "index.json", 0o644, &index)?;
        append(&mut tar, "manifest.json", 0o644, &docker)?;
        tar.into_inner()?.flush()?;
        fs::set_permissions(unfinished.path(), PermissionsExt::from_mode(0o644))?;
        unfinished.persist(archive).with_context(|| format!("could not write {}", archive.display()))?;
        Ok(manifest_blob.digest())
    }

    /// Returns the layer as it is transported, and the hash of what is in it.
    fn write_layer(&self, path: &Path) -> Result<(Blob, String)> {
        let file = Hashing::new(BufWriter::new(File::create(path)?));
        let mut tar = Builder::new(Hashing::new(GzEncoder::new(file, Compression::fast())));
        for (name, node) in &self.tree {
            match node {
                Node::Folder { mode } => {
                    let mut header = header(EntryType::Directory, *mode, 0);
                    tar.append_data(&mut header, format!("{name}/"), io::empty())?;
                }
                Node::File { mode, content } => append(&mut tar, name, *mode, content)?,
                Node::Copy { mode, from } => append_from(&mut tar, name, *mode, from)?,
                Node::Link { target } => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, name, target)?;
                }
            }
        }
        let content = tar.into_inner()?;
        let mut file = content.inner.finish()?;
        file.flush()?;
        Ok((Blob { hash: hex(&file.hash.finalize()), bytes: file.bytes }, hex(&content.hash.finalize())))
    }
}

struct Blob {
    hash: String,
    bytes: u64,
}

impl Blob {
    fn of(content: &[u8]) -> Self {
        Self { hash: hex(&Sha256::digest(content)), bytes: content.len() as u64 }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hash)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hash)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest(), "size": self.bytes})
    }
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn append(tar: &mut Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    tar.append_data(&mut header(EntryType::Regular, mode, content.len() as u64), path, content)?;
    Ok(())
}

fn append_from(tar: &mut Builder<impl Write>, path: &str, mode: u32, from: &Path) -> Result<()> {
    let file = File::open(from).with_context(|| format!("could not read {}", from.display()))?;
    let size = file.metadata()?.len();
    tar.append_data(&mut header(EntryType::Regular, mode, size), path, file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn sample() -> Image {
        let mut image = Image::new("localhost/sample:dev", &["/bin/sample"]);
        image.program("/bin/sample", b"program").file("/etc/motd", b"hello").link("/bin/alias", "sample");
        image
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first.tar"), folder.path().join("second.tar"));
        assert_eq!(sample().write(&first).unwrap(), sample().write(&second).unwrap());
        assert!(fs::read(first).unwrap() == fs::read(second).unwrap());
    }

    #[test]
    fn the_order_in_which_files_are_put_does_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let mut other = Image::new("localhost/sample:dev", &["/bin/sample"]);
        other.link("/bin/alias", "sample").file("/etc/motd", b"hello").program("/bin/sample", b"program");
        let digest = sample().write(&folder.path().join("first.tar")).unwrap();
        assert_eq!(digest, other.write(&folder.path().join("second.tar")).unwrap());
    }

    #[test]
    fn every_blob_is_named_by_its_own_hash_and_the_index_leads_to_all() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("image.tar");
        let digest = sample().write(&archive).unwrap();
        let mut entries = BTreeMap::new();
        for entry in tar::Archive::new(File::open(archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            entries.insert(entry.path().unwrap().to_str().unwrap().to_owned(), content);
        }
        for (name, content) in entries.iter().filter(|(name, _)| name.starts_with("blobs/")) {
            assert_eq!(*name, Blob::of(content).path());
        }
        let index: Value = serde_json::from_slice(&entries["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["digest"], digest.as_str());
        let blob = |digest: &Value| &entries[&format!("blobs/sha256/{}", &digest.as_str().unwrap()[7..])];
        let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0]["digest"])).unwrap();
        let config: Value = serde_json::from_slice(blob(&manifest["config"]["digest"])).unwrap();
        assert_eq!(config["config"]["User"], "65532:65532");
        let layer = blob(&manifest["layers"][0]["digest"]);
        let mut content = Vec::new();
        flate2::read::GzDecoder::new(&layer[..]).read_to_end(&mut content).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], Blob::of(&content).digest());
        let mut layer = tar::Archive::new(&content[..]);
        let names: Vec<_> =
            layer.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["bin/", "bin/alias", "bin/sample", "etc/", "etc/group", "etc/motd", "etc/passwd", "tmp/"]);
    }

    #[test]
    fn a_reference_without_a_tag_is_refused_with_an_example() {
        let folder = tempfile::tempdir().unwrap();
        let error =
            Image::new("localhost:5000/gregor", &[]).write(&folder.path().join("x.tar")).unwrap_err().to_string();
        assert!(error.contains("localhost:5000/gregor:dev"), "{error}");
    }
}
