//! The programs that are put into every step container, as the engine is given them.
//!
//! # Invariants
//!
//! - `the_hash_is_of_the_content`: another agent has another hash, so that it gets a volume of its
//!   own and the replicas made with the old one are replaced.

use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Where the programs are on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentBinaries {
    /// The agent: PID 1.
    pub agent: PathBuf,
    /// What stands between the agent and a program in `mode: lines`.
    pub lines: PathBuf,
}

impl AgentBinaries {
    /// Names them as they are built and installed: beside `executable`.
    pub fn beside(executable: &Path) -> Self {
        Self {
            agent: executable.with_file_name("towpath-agent"),
            lines: executable.with_file_name("towpath-lines"),
        }
    }

    /// Reads them.
    pub fn load(&self) -> Result<Agent, AgentError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| AgentError::Read {
                path: path.into(),
                source,
            })
        };
        Agent::new(&read(&self.agent)?, &read(&self.lines)?).map_err(AgentError::Pack)
    }
}

/// Why the programs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// One is not where it should be.
    #[error("cannot read `{}`, which is put into step containers", path.display())]
    Read {
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: std::io::Error,
    },
    /// They cannot be packed.
    #[error("cannot pack the agent")]
    Pack(#[source] std::io::Error),
}

/// The programs, packed.
#[derive(Clone)]
pub struct Agent {
    hash: String,
    archive: Bytes,
}

impl Agent {
    /// The file that says that a volume is filled. It is last in the archive, and an archive is
    /// unpacked in order.
    pub const MARKER: &'static str = "complete";

    /// Packs the two programs.
    pub fn new(agent: &[u8], lines: &[u8]) -> std::io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"towpath agent 1\0");
        for program in [agent, lines] {
            hasher.update(&(program.len() as u64).to_le_bytes());
            hasher.update(program);
        }
        let mut archive = tar::Builder::new(Vec::with_capacity(agent.len() + lines.len() + 8192));
        append(&mut archive, "agent", agent, 0o555)?;
        append(&mut archive, "lines", lines, 0o555)?;
        append(&mut archive, Self::MARKER, b"", 0o444)?;
        let archive = Bytes::from(archive.into_inner()?);
        Ok(Self {
            hash: hasher.finalize().to_hex().to_string(),
            archive,
        })
    }

    /// The hash of both, in hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The name of the volume that holds them.
    pub fn volume(&self, instance: &str) -> String {
        format!("{instance}.agent.{}", &self.hash[..16])
    }

    /// A tar archive of `agent`, `lines` and [`Self::MARKER`].
    pub fn archive(&self) -> Bytes {
        self.archive.clone()
    }
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    name: &str,
    content: &[u8],
    mode: u32,
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_of_the_content() {
        let one = Agent::new(b"agent", b"lines").unwrap();
        let same = Agent::new(b"agent", b"lines").unwrap();
        let moved = Agent::new(b"agentl", b"ines").unwrap();
        assert_eq!(one.hash(), same.hash());
        assert_ne!(one.hash(), moved.hash());
        assert_eq!(one.volume("i"), format!("i.agent.{}", &one.hash()[..16]));
    }

    #[test]
    fn the_marker_is_last_in_the_archive() {
        let agent = Agent::new(b"agent", b"lines").unwrap();
        let archive = agent.archive();
        let mut archive = tar::Archive::new(archive.as_ref());
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().mode().unwrap())
            })
            .collect();
        assert_eq!(
            entries,
            [
                ("agent".into(), 0o555),
                ("lines".into(), 0o555),
                ("complete".into(), 0o444)
            ]
        );
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let binaries = AgentBinaries::beside(Path::new("/nowhere/towpath"));
        let error = binaries.load().err().expect("there is no such file");
        assert_eq!(
            error.to_string(),
            "cannot read `/nowhere/towpath-agent`, which is put into step containers"
        );
    }
}
