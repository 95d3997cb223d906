//! The hash of a file tree as Git has it: blobs and trees, of SHA-1 or SHA-256.
//!
//! Format: `libutil/git.cc` of NixOS/nix, which is Git's own. A tree lists its entries by name, where a directory
//! counts as if its name ended with `/`; a file's mode is 100644 or 100755, a symlink's 120000, a directory's 40000.

use shoal_wire::nix::hash::{Hash, HashAlgo, Hasher};
use shoal_wire::nix::nar::{NarError, NarSink};

/// Computes the hash of the tree whose NAR is parsed into it.
pub struct GitHash {
    algo: HashAlgo,
    open: Vec<Tree>,
    /// The regular file whose contents come now.
    file: Option<(Hasher, Node)>,
    root: Option<Hash>,
}

/// A directory, until its end.
struct Tree {
    name: Vec<u8>,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
}

struct Node {
    mode: &'static str,
    name: Vec<u8>,
}

impl GitHash {
    pub fn new(algo: HashAlgo) -> Self {
        GitHash { algo, open: Vec::new(), file: None, root: None }
    }

    /// `None` before the NAR's end.
    pub fn hash(&self) -> Option<Hash> {
        self.root
    }

    fn header(&self, kind: &str, len: u64) -> Hasher {
        let mut hasher = Hasher::new(self.algo);
        hasher.update(format!("{kind} {len}\0").as_bytes());
        hasher
    }

    fn add(&mut self, Node { mode, name }: Node, hash: Hash) {
        let Some(tree) = self.open.last_mut() else {
            self.root = Some(hash);
            return;
        };
        let mut entry = format!("{mode} ").into_bytes();
        entry.extend_from_slice(&name);
        entry.push(0);
        entry.extend_from_slice(hash.digest());
        let mut key = name;
        if mode == "40000" {
            key.push(b'/');
        }
        tree.entries.push((key, entry));
    }
}

impl NarSink for GitHash {
    type Error = NarError;

    fn directory(&mut self, name: &[u8], _offset: u64) -> Result<(), NarError> {
        self.open.push(Tree { name: name.to_vec(), entries: Vec::new() });
        Ok(())
    }

    fn end_directory(&mut self, _offset: u64) -> Result<(), NarError> {
        if let Some(mut tree) = self.open.pop() {
            tree.entries.sort();
            let len = tree.entries.iter().map(|(_, entry)| entry.len() as u64).sum();
            let mut hasher = self.header("tree", len);
            tree.entries.iter().for_each(|(_, entry)| hasher.update(entry));
            self.add(Node { mode: "40000", name: tree.name }, hasher.finish());
        }
        Ok(())
    }

    fn regular(&mut self, name: &[u8], executable: bool, size: u64, _offset: u64) -> Result<(), NarError> {
        let mode = if executable { "100755" } else { "100644" };
        self.file = Some((self.header("blob", size), Node { mode, name: name.to_vec() }));
        Ok(())
    }

    fn contents(&mut self, bytes: &[u8], _offset: u64) -> Result<(), NarError> {
        if let Some((hasher, _)) = &mut self.file {
            hasher.update(bytes);
        }
        Ok(())
    }

    fn end_regular(&mut self, _offset: u64) -> Result<(), NarError> {
        if let Some((hasher, node)) = self.file.take() {
            self.add(node, hasher.finish());
        }
        Ok(())
    }

    fn symlink(&mut self, name: &[u8], target: &[u8], _offset: u64) -> Result<(), NarError> {
        let mut hasher = self.header("blob", target.len() as u64);
        hasher.update(target);
        self.add(Node { mode: "120000", name: name.to_vec() }, hasher.finish());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use shoal_wire::nix::nar::NarLimits;
    use shoal_wire::nix::nar::parse::NarParser;
    use shoal_wire::nix::nar::write::NarWriter;

    use super::*;

    fn hash(write: impl FnOnce(&mut NarWriter<&mut Vec<u8>>)) -> String {
        let mut nar = Vec::new();
        let mut writer = NarWriter::new(&mut nar);
        write(&mut writer);
        writer.finish().unwrap();
        let mut git = GitHash::new(HashAlgo::Sha1);
        NarParser::new(NarLimits::STRICT).feed(&nar, &mut git).unwrap();
        git.hash().unwrap().to_base16()
    }

    fn file(writer: &mut NarWriter<&mut Vec<u8>>, name: &[u8], executable: bool, contents: &[u8]) {
        writer.regular(name, executable, contents.len() as u64).unwrap();
        writer.contents(contents).unwrap();
    }

    /// `printf 'hello\n' | git hash-object --stdin`
    #[test]
    fn a_blob_is_as_git_has_it() {
        assert_eq!(hash(|nar| file(nar, b"", false, b"hello\n")), "ce013625030ba8dba906f756967f9e9ca394464a");
    }

    /// `git write-tree` of `a.b` (executable), `a/x` and a symlink `link` to `a/x`: `a.b` sorts before `a/`.
    #[test]
    fn a_tree_sorts_directories_as_if_they_ended_with_a_slash() {
        let got = hash(|nar| {
            nar.directory(b"").unwrap();
            nar.directory(b"a").unwrap();
            file(nar, b"x", false, b"hello\n");
            nar.end_directory().unwrap();
            file(nar, b"a.b", true, b"hello\n");
            nar.symlink(b"link", b"a/x").unwrap();
            nar.end_directory().unwrap();
        });
        assert_eq!(got, "d10460ce4563b92ad67063b180f5e91e74ef7df5");
    }
}
