//! What is wrong with a flow file: a stable code, a sentence, the places, and what to do.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::finding::Finding;
use crate::limits::DIAGNOSTICS_MAX;
use crate::render::{self, Paint};
use crate::source::{Lines, Source};

macro_rules! codes {
    ($($(#[doc = $about:literal])* $name:ident = $code:literal, $severity:ident;)*) => {
        /// The kinds of diagnostics. A code keeps its meaning for ever.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[doc = $about])* $name,)* }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The code: `F030`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code,)* }
            }

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self { $(Code::$name => Severity::$severity,)* }
            }

            /// What it is about, in a sentence.
            pub fn about(self) -> &'static str {
                match self { $(Code::$name => concat!($($about,)*).trim_ascii(),)* }
            }
        }
    };
}

codes! {
    /// The file is larger than 1 MiB.
    TooLarge = "F001", Error;
    /// The file is not text in UTF-8.
    NotUtf8 = "F002", Error;
    /// The file is not YAML.
    NotYaml = "F003", Error;
    /// The file is empty, or there are only comments in it.
    Empty = "F004", Error;
    /// There are several documents in the file.
    SeveralDocuments = "F005", Error;
    /// Anchors, aliases, merge keys and tags of YAML are not part of a flow file.
    NotSupportedYaml = "F006", Error;
    /// Values are nested too deep.
    TooDeep = "F007", Error;
    /// A number cannot be held exactly.
    BadNumber = "F008", Error;
    /// A key is there twice.
    DuplicateKey = "F009", Error;
    /// A key is not known here.
    UnknownKey = "F010", Error;
    /// A key that must be there is not.
    MissingKey = "F011", Error;
    /// A value is of the wrong type.
    WrongType = "F012", Error;
    /// A name has characters that names do not have.
    BadName = "F013", Error;
    /// A duration cannot be read.
    BadDuration = "F014", Error;
    /// A size cannot be read.
    BadSize = "F015", Error;
    /// A value is outside of what is allowed.
    OutOfRange = "F016", Error;
    /// A value is none of those that are allowed.
    BadChoice = "F017", Error;
    /// The trigger has two ways to fire.
    FiresTwice = "F020", Error;
    /// The trigger has no way to fire.
    NeverFires = "F021", Error;
    /// A key has no meaning without an image.
    NeedsImage = "F022", Error;
    /// The flow has no actions.
    NoActions = "F023", Error;
    /// A trigger cannot be `once`.
    OnceTrigger = "F024", Error;
    /// The replicas of a trigger are a number, not counted by the work.
    TriggerScaled = "F026", Error;
    /// `replicas` has two ways to count the work, or none.
    ScaleWays = "F027", Error;
    /// Two steps have one id.
    DuplicateStep = "F030", Error;
    /// A step takes messages from a step that is not there.
    UnknownStep = "F031", Error;
    /// Steps wait for each other in a loop.
    Loop = "F032", Error;
    /// No message ever reaches a step.
    Unreachable = "F033", Error;
    /// A step takes the same messages twice.
    DuplicateAfter = "F034", Error;
    /// A step takes messages from a port that is not there.
    UnknownPort = "F035", Error;
    /// The name of an image cannot be read.
    BadImage = "F040", Error;
    /// An image does not exist.
    MissingImage = "F041", Error;
    /// An image is made for another kind of step.
    WrongKind = "F042", Error;
    /// An image speaks another version of the step protocol.
    WrongContract = "F043", Error;
    /// The manifest of an image cannot be used.
    BadManifest = "F044", Error;
    /// A value of `with` is not what the step takes.
    BadWith = "F045", Error;
    /// The step does not know a key of `with`.
    UnknownWith = "F046", Error;
    /// `with` lacks a key that the step needs.
    MissingWith = "F047", Error;
    /// A `${…}` cannot be read.
    BadPlaceholder = "F050", Error;
    /// A secret does not exist.
    UnknownSecret = "F051", Error;
    /// An environment variable is not set.
    UnknownEnv = "F052", Error;
    /// A time limit is longer than the broker waits.
    LongTimeout = "F060", Warning;
    /// Something was not checked, because the facts are not known.
    NotChecked = "F061", Note;
    /// A cron expression cannot be read.
    BadCron = "F070", Error;
    /// A cron expression never fires.
    CronNever = "F071", Error;
    /// A time zone does not exist.
    UnknownZone = "F072", Error;
    /// A key has no meaning for the way the trigger fires.
    NeedsSchedule = "F073", Error;
    /// A key of `auth` or `handshake` has no meaning with its type.
    AuthKey = "F080", Error;
    /// A secret is written into the file.
    WrittenSecret = "F081", Error;
    /// `id` does not say where the id of a request is.
    BadRequestId = "F082", Error;
    /// The rate of a webhook cannot be read.
    BadRate = "F083", Error;
    /// An API key is in two places, or in none.
    ApiKeyPlace = "F084", Error;
    /// The name of a header cannot be read.
    BadHeader = "F085", Error;
    /// A flow that answers must note what comes of its runs.
    ReplyUntracked = "F086", Error;
    /// A step follows the port that answers.
    FollowsReply = "F087", Error;
    /// Requests wait for an answer that no step gives.
    NobodyReplies = "F088", Warning;
    /// A step answers, and no request waits for it.
    NobodyWaits = "F089", Warning;
    /// A condition cannot be compiled.
    BadCondition = "F090", Error;
    /// A condition or a `to` stands where nobody could decide.
    NobodyDecides = "F091", Error;
    /// A step follows one that hands its messages to another flow.
    AfterHandover = "F092", Error;
    /// Messages are handed to a flow that takes none.
    UnknownFlow = "F093", Error;
    /// Flows hand messages to each other in a loop.
    FlowLoop = "F094", Error;
    /// What messages are ordered by is not an expression.
    BadOrder = "F095", Error;
    /// Partitions have no meaning without an order.
    PartitionsAlone = "F096", Error;
    /// A message would be held for too long, and all behind it.
    LongHold = "F097", Error;
    /// There are more replicas than partitions.
    IdleReplicas = "F098", Warning;
    /// What a step emits can never be what the next one takes.
    NeverFits = "F105", Error;
    /// What a step emits may not be what the next one takes.
    MayNotFit = "F106", Warning;
    /// Bodies are to be held against a schema that the image does not have.
    NothingToValidate = "F107", Error;
    /// A rate cannot be read.
    BadStepRate = "F108", Error;
    /// A step has no use for `batch`, because it handles each message by itself.
    BatchOfOne = "F109", Warning;
    /// `batch` hands over more than the step handles together.
    BatchTooLarge = "F110", Error;
    /// `batch` does not go with another key.
    BatchClash = "F111", Error;
    /// A step makes something of several messages, and nothing says of which.
    BatchMissing = "F112", Error;
    /// A folder does not exist.
    UnknownFolder = "F130", Error;
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// How bad a diagnostic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The flow cannot be applied.
    Error,
    /// It can be applied, but probably should not.
    Warning,
    /// Something to know.
    Note,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    /// Its kind.
    pub(crate) code: Code,
    /// What is wrong, in a sentence without a final period.
    pub(crate) message: String,
    /// Where, in bytes; none if it is about the whole file.
    pub(crate) span: Option<Range<usize>>,
    /// What is at that place; may be empty.
    pub(crate) label: String,
    /// Other places that matter, each with what is there.
    pub(crate) related: Vec<(Range<usize>, String)>,
    /// What to do, if it is known.
    pub(crate) help: Vec<String>,
}

impl Diagnostic {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            span: None,
            label: String::new(),
            related: Vec::new(),
            help: Vec::new(),
        }
    }

    pub(crate) fn at(mut self, span: Range<usize>) -> Self {
        self.span = Some(span);
        self
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    pub(crate) fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// With a help, if there is one.
    pub(crate) fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help.extend(help);
        self
    }
}

/// All that is wrong with one file, in the order of the file.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    name: String,
    text: String,
    findings: Vec<Finding>,
}

impl Diagnostics {
    /// Of a check: sorted, at most [`DIAGNOSTICS_MAX`], errors first if there are more.
    pub(crate) fn new(source: &Source, mut items: Vec<Diagnostic>) -> Self {
        items.sort_by_key(|item| item.span.as_ref().map_or(usize::MAX, |span| span.start));
        items.dedup();
        if items.len() > DIAGNOSTICS_MAX {
            items.sort_by_key(|item| item.code.severity());
            items.truncate(DIAGNOSTICS_MAX);
        }
        let text = source.shown();
        let lines = Lines::new(&text);
        let findings = items
            .iter()
            .map(|item| Finding::new(&source.name, item, &lines))
            .collect();
        Self {
            name: source.name.clone(),
            text,
            findings,
        }
    }

    /// Of findings that were made elsewhere, for instance by the control plane, to show them with
    /// the lines of the file.
    pub fn from_findings(source: &Source, findings: Vec<Finding>) -> Self {
        Self {
            name: source.name.clone(),
            text: source.shown(),
            findings,
        }
    }

    /// What messages call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All of them, as they go over the API.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// All of them, as they go over the API.
    pub fn into_findings(self) -> Vec<Finding> {
        self.findings
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// How many of them are of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    }

    /// As a person reads them: every one with its lines, an empty line between, and no line break
    /// at the end.
    pub fn render(&self, paint: Paint) -> String {
        render::all(&self.name, &self.text, &self.findings, paint)
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.render(Paint::Plain))
    }
}

impl std::error::Error for Diagnostics {}
