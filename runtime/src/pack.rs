//! Packs a step's program into an image, and asks a program or an image for its manifest.
//!
//! # Invariants
//!
//! - `a_program_that_needs_libraries_is_refused`: an image `FROM scratch` has none, and the engine
//!   would only say that there is no such file.
//! - Packing the same program again gives the same image, so that nothing that runs is replaced.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::process::Command;
use towpath_protocol::CONTRACT;
use towpath_protocol::manifest::{MANIFEST_LABEL, Manifest};

use crate::engine::docker::{Build, DockerEngine};
use crate::engine::{Engine, EngineError, Image};

/// How long a program may take to print its manifest.
const MANIFEST_TIME: Duration = Duration::from_secs(10);

/// The largest manifest: a label of an image.
const MANIFEST_BYTES_MAX: usize = 512 << 10;

/// The user that a packed step runs as: nobody.
const USER: &str = "65534:65534";

/// What to pack, and how.
#[derive(Debug, Clone)]
pub struct Pack {
    /// The program.
    pub program: PathBuf,
    /// What the image is called.
    pub tag: String,
    /// What it is made on; nothing (`scratch`) if none.
    pub from: Option<String>,
    /// Whether to leave out symbols, which a step does not need to run.
    pub strip: bool,
}

/// A packed step.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The image.
    pub image: Image,
    /// What it says of itself.
    pub manifest: Manifest,
    /// What the person who packed it should know.
    pub notes: Vec<String>,
}

/// Why a step cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The file cannot be read or written.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is not a program for Linux.
    #[error("`{}` is not a program for Linux (ELF, 64 bits)", path.display())]
    NotAProgram {
        /// The file.
        path: PathBuf,
    },
    /// It needs libraries that an empty image does not have.
    #[error("`{}` is linked dynamically: it needs `{loader}`, which an empty image does not have", path.display())]
    Dynamic {
        /// The file.
        path: PathBuf,
        /// What it needs.
        loader: String,
    },
    /// It does not print its manifest.
    #[error("`{} manifest` does not print a manifest: {why}", path.display())]
    NoManifest {
        /// The file.
        path: PathBuf,
        /// What it does instead.
        why: String,
    },
    /// There is neither such a program nor such an image.
    #[error("there is no file and no image `{name}`")]
    Nothing {
        /// What was looked for.
        name: String,
    },
    /// The image says nothing of itself.
    #[error("the image `{name}` {why}")]
    Silent {
        /// The image.
        name: String,
        /// How.
        why: String,
    },
    /// The image cannot be put together.
    #[error("cannot put the image together")]
    Archive(#[source] std::io::Error),
    /// The engine does not do its part.
    #[error("cannot build the image")]
    Engine(#[from] EngineError),
}

impl PackError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Dynamic { .. } => Some(
                "build it with `RUSTFLAGS=\"-C target-feature=+crt-static\" cargo build --release \
                 --target x86_64-unknown-linux-gnu`, or name an image that has the libraries with \
                 `--from debian:stable-slim`"
                    .to_owned(),
            ),
            Self::NoManifest { .. } => Some(
                "a step made with `towpath-step` prints it; any other program needs an image of \
                 its own with the label `io.towpath.manifest`"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// Packs a step.
pub async fn pack(engine: &DockerEngine, pack: &Pack) -> Result<Packed, PackError> {
    let path = std::path::absolute(&pack.program).unwrap_or_else(|_| pack.program.clone());
    let mut program = read(&path)?;
    if pack.from.is_none() {
        check_static(&path, &program)?;
    }
    let manifest = ask_program(&path).await?;
    let mut notes = Vec::new();
    if pack.strip {
        match stripped(&path).await {
            Ok(smaller) => program = smaller,
            Err(why) => notes.push(format!("symbols are left in: {why}")),
        }
    }
    let label = serde_json::to_string(&manifest).map_err(|source| PackError::NoManifest {
        path: path.clone(),
        why: source.to_string(),
    })?;
    let build = Build {
        tag: pack.tag.clone(),
        context: context(&program, pack.from.as_deref()).map_err(PackError::Archive)?,
        labels: HashMap::from([(MANIFEST_LABEL.to_owned(), label)]),
    };
    let image = engine.build(build).await?;
    Ok(Packed {
        image,
        manifest,
        notes,
    })
}

/// The manifest of a program, if there is such a file, or of an image.
pub async fn manifest(engine: &DockerEngine, name: &str) -> Result<Manifest, PackError> {
    if Path::new(name).is_file() {
        let path = std::path::absolute(name).unwrap_or_else(|_| name.into());
        return ask_program(&path).await;
    }
    let image = engine.image(name).await?;
    let image = image.ok_or_else(|| PackError::Nothing {
        name: name.to_owned(),
    })?;
    match (image.manifest, image.unreadable) {
        (Some(manifest), _) => Ok(manifest),
        (None, Some(why)) => {
            let why = format!("has a manifest that cannot be read: {why}");
            Err(PackError::Silent {
                name: name.to_owned(),
                why,
            })
        }
        (None, None) => {
            let why = format!("has no manifest (no label `{MANIFEST_LABEL}`)");
            Err(PackError::Silent {
                name: name.to_owned(),
                why,
            })
        }
    }
}

/// Runs `<program> manifest`.
async fn ask_program(path: &Path) -> Result<Manifest, PackError> {
    let fail = |why: String| PackError::NoManifest {
        path: path.to_owned(),
        why,
    };
    let output = Command::new(path)
        .arg("manifest")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(MANIFEST_TIME, output)
        .await
        .map_err(|_| {
            fail(format!(
                "it is still running after {} s",
                MANIFEST_TIME.as_secs()
            ))
        })?
        .map_err(|error| fail(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or("nothing on standard error");
        return Err(fail(format!("{}: {said}", output.status)));
    }
    if output.stdout.len() > MANIFEST_BYTES_MAX {
        return Err(fail(format!(
            "it prints more than {MANIFEST_BYTES_MAX} bytes"
        )));
    }
    let manifest: Manifest =
        serde_json::from_slice(&output.stdout).map_err(|error| fail(error.to_string()))?;
    if manifest.contract != CONTRACT {
        let theirs = manifest.contract;
        return Err(fail(format!(
            "it speaks contract {theirs}, this Towpath contract {CONTRACT}"
        )));
    }
    Ok(manifest)
}

/// Leaves out symbols, in a copy.
async fn stripped(path: &Path) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let smaller = folder.path().join("step");
    let output = Command::new("strip")
        .arg("-o")
        .arg(&smaller)
        .arg(path)
        .output()
        .await;
    let output = output.map_err(|error| format!("`strip` cannot be run ({error})"))?;
    if !output.status.success() {
        return Err(format!(
            "`strip` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    std::fs::read(&smaller).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, PackError> {
    std::fs::read(path).map_err(|source| PackError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Refuses what would not run in an empty image.
fn check_static(path: &Path, program: &[u8]) -> Result<(), PackError> {
    match linkage(program) {
        None => Err(PackError::NotAProgram {
            path: path.to_owned(),
        }),
        Some(Linkage::Static) => Ok(()),
        Some(Linkage::Dynamic(loader)) => Err(PackError::Dynamic {
            path: path.to_owned(),
            loader,
        }),
    }
}

/// How a program is linked.
#[derive(Debug, PartialEq)]
enum Linkage {
    /// It needs nothing.
    Static,
    /// It asks for this dynamic loader (its `PT_INTERP` segment).
    Dynamic(String),
}

/// Reads how a program is linked; `None` if it is no 64-bit little-endian ELF file. The numbers
/// are offsets in the ELF-64 headers.
fn linkage(program: &[u8]) -> Option<Linkage> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = program.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |number, byte| (number << 8) | u64::from(*byte)),
        )
    };
    if program.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let header = usize::try_from(table.checked_add(index * size)?).ok()?;
        if number(header, 4)? == PT_INTERP {
            let start = usize::try_from(number(header.checked_add(8)?, 8)?).ok()?;
            let length = usize::try_from(number(header.checked_add(32)?, 8)?).ok()?;
            let text = program.get(start..start.checked_add(length)?)?;
            let text = String::from_utf8_lossy(text);
            return Some(Linkage::Dynamic(text.trim_end_matches('\0').to_owned()));
        }
    }
    Some(Linkage::Static)
}

/// What the engine builds from: an archive with the program and an empty `/tmp`, and how to put
/// that into an image. An archive, because the builder keeps the modes of what is in one.
fn context(program: &[u8], from: Option<&str>) -> std::io::Result<Bytes> {
    let mut root = tar::Builder::new(Vec::with_capacity(program.len() + 8192));
    if from.is_none() {
        let mut folder = header(0, 0o1777);
        folder.set_entry_type(tar::EntryType::Directory);
        root.append_data(&mut folder, "tmp/", std::io::empty())?;
    }
    root.append_data(&mut header(program.len(), 0o555), "step", program)?;
    let root = root.into_inner()?;
    let from = from.unwrap_or("scratch");
    let dockerfile =
        format!("FROM {from}\nADD root.tar /\nUSER {USER}\nENTRYPOINT [\"/step\"]\nCMD []\n");
    let mut archive = tar::Builder::new(Vec::with_capacity(root.len() + 8192));
    archive.append_data(
        &mut header(dockerfile.len(), 0o444),
        "Dockerfile",
        dockerfile.as_bytes(),
    )?;
    archive.append_data(&mut header(root.len(), 0o444), "root.tar", root.as_slice())?;
    archive.into_inner().map(Bytes::from)
}

fn header(size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with one program header of a kind, and a text that it points to.
    fn elf(kind: u8, text: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file[64] = kind;
        file[64 + 8] = 120;
        file[64 + 32] = u8::try_from(text.len()).expect("it is short");
        file.extend_from_slice(text);
        file
    }

    #[test]
    fn a_program_that_needs_libraries_is_refused() {
        let program = elf(3, b"/lib64/ld-linux-x86-64.so.2\0");
        let error = check_static(Path::new("step"), &program).expect_err("it needs a loader");
        assert_eq!(
            error.to_string(),
            "`step` is linked dynamically: it needs `/lib64/ld-linux-x86-64.so.2`, which an empty \
             image does not have"
        );
        assert!(
            error
                .hint()
                .expect("there is a way")
                .contains("+crt-static")
        );
        assert!(check_static(Path::new("step"), &elf(1, b"")).is_ok());
    }

    #[test]
    fn what_is_no_program_is_refused_and_nothing_panics() {
        for file in [
            &b""[..],
            b"#!/bin/sh\n",
            b"\x7fELF\x02\x01",
            &[0xff; 200],
            b"\x7fELF\x01\x01",
        ] {
            assert!(matches!(
                check_static(Path::new("x"), file),
                Err(PackError::NotAProgram { .. })
            ));
        }
        let mut cut = elf(3, b"/lib64/ld-linux-x86-64.so.2\0");
        cut[32..40].fill(0xff);
        assert_eq!(linkage(&cut), None);
    }

    #[test]
    fn this_very_program_is_read_right() {
        let program = std::fs::read("/proc/self/exe").expect("it runs");
        let linkage = linkage(&program).expect("it is an ELF file");
        assert_eq!(
            linkage == Linkage::Static,
            cfg!(target_feature = "crt-static")
        );
    }

    #[tokio::test]
    async fn a_program_without_a_manifest_says_what_it_does_instead() {
        let error = ask_program(Path::new("/bin/false"))
            .await
            .expect_err("it prints nothing");
        assert!(error.to_string().contains("exit status: 1"), "{error}");
        let error = ask_program(Path::new("/bin/echo"))
            .await
            .expect_err("it prints `manifest`");
        assert!(
            error
                .to_string()
                .starts_with("`/bin/echo manifest` does not print a manifest")
        );
    }
}
