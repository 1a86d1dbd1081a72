//! What is known of the world around a flow file. Whatever is not known is not checked, and a note
//! says so.

use std::collections::{BTreeMap, BTreeSet};

use towpath_protocol::manifest::Manifest;

/// What is known when a file is checked. `Facts::default()` is nothing: a check of the file alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The images, as they are written in the file. One that is not here is
    /// [`ImageFact::Unknown`].
    pub images: BTreeMap<String, ImageFact>,
    /// The names of all secrets; none if they are not known.
    pub secrets: Option<BTreeSet<String>>,
    /// The names of the environment variables there are; none if they are not known.
    pub env: Option<BTreeSet<String>>,
    /// The names of the folders that steps may use; none if they are not known.
    pub folders: Option<BTreeSet<String>>,
    /// The conditions, and what messages are ordered by, as they are written in the file, each with
    /// what is wrong with it. One that is not here was not compiled.
    pub conditions: BTreeMap<String, Result<(), String>>,
    /// The other flows there are; none if they are not known.
    pub flows: Option<BTreeMap<String, FlowFact>>,
}

/// What is known of another flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowFact {
    /// Its trigger says `from: flows`.
    pub takes: bool,
    /// The flows that it hands messages to.
    pub to: BTreeSet<String>,
}

impl Facts {
    /// What is known of an image.
    pub fn image(&self, image: &str) -> &ImageFact {
        self.images.get(image).unwrap_or(&ImageFact::Unknown)
    }
}

/// What is known of an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ImageFact {
    /// It is there, and this is its manifest, if it has one.
    Known(Option<Manifest>),
    /// It is there, but its manifest cannot be read, for this reason.
    Unreadable(String),
    /// It is not there, and cannot be had.
    Missing,
    /// Nobody looked.
    #[default]
    Unknown,
}
