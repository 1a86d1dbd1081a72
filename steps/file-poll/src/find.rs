//! Which files there are.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use glob::{MatchOptions, Pattern, glob_with};
use towpath_step::{Result, ResultExt as _, StepError};

/// Hidden files are those of programs that are not done with them.
const MATCHING: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// A pattern for paths.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pattern: String,
    /// The folder before the first wildcard, which names begin after.
    base: PathBuf,
}

/// A file that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its path after the folder before the first wildcard: what it is known by.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// How a file is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The file system's number of it, which another file of the same name does not have.
    pub inode: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Since when it is as it is.
    pub unchanged: Duration,
}

impl Files {
    /// Reads a pattern.
    pub(crate) fn new(pattern: &str) -> Result<Self> {
        Pattern::new(pattern)
            .map_err(|error| StepError::permanent(format!("`files` cannot be read: {error}")))?;
        if !pattern.starts_with('/') {
            return Err(StepError::permanent(
                "`files` has to begin with `/`: `/folders/inbox/*.csv`",
            ));
        }
        let literal = pattern.find(['*', '?', '[']).unwrap_or(pattern.len());
        let end = pattern[..literal].rfind('/').unwrap_or_default();
        Ok(Self {
            pattern: pattern.to_owned(),
            base: PathBuf::from(&pattern[..=end]),
        })
    }

    /// Lists them, by name.
    pub(crate) fn list(&self) -> Result<Vec<Found>> {
        // Without it there would be no files, and no word about why.
        std::fs::read_dir(&self.base)
            .with_context(|| format!("`{}` cannot be read", self.base.display()))?;
        let paths = glob_with(&self.pattern, MATCHING).permanent()?;
        let mut found = Vec::new();
        for path in paths {
            let path = path.context("a folder cannot be read")?;
            if path.is_file() {
                let name = path.strip_prefix(&self.base).unwrap_or(&path);
                found.push(Found {
                    name: name.to_string_lossy().into_owned(),
                    path,
                });
            }
        }
        found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }
}

/// How a file is, from what the file system says.
pub(crate) fn look(metadata: &Metadata, now: SystemTime) -> Look {
    let modified = metadata.modified().unwrap_or(now);
    Look {
        inode: metadata.ino(),
        length: metadata.len(),
        unchanged: now.duration_since(modified).unwrap_or_default(),
    }
}

/// The end of a file's name, in small letters: `csv`.
pub(crate) fn ending(path: &Path) -> String {
    let ending = path.extension().unwrap_or_default();
    ending.to_string_lossy().to_lowercase()
}
