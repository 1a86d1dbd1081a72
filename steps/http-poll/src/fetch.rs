//! Asks for a page, and how long it is worth asking again.

use std::time::{Duration, SystemTime};

use towpath_step::{Fate, Result, StepError, tracing};
use towpath_step_http::{
    Answer, Client, HeaderMap, Method, Opened, Request, StatusCode, Url, Verdict,
};

use crate::validators::Validators;

/// How often a page is asked for before the run is given back: a walk of a hundred pages would
/// hardly ever end if one bad answer threw it back to the beginning.
const TRIES: u32 = 4;

/// The wait after the first bad answer; each one after is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Asks for pages.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) client: Client,
    pub(crate) headers: HeaderMap,
    /// How long a server may be silent.
    pub(crate) timeout: Duration,
}

impl Fetch {
    /// Asks for a page once; with validators, the answer may be that nothing changed. An error says
    /// what is to become of the run.
    pub(crate) async fn open(&self, url: &Url, validators: Option<&Validators>) -> Result<Opened> {
        let mut headers = self.headers.clone();
        if let Some(validators) = validators {
            validators.ask(&mut headers);
        }
        let request = Request {
            method: Method::GET,
            url: url.clone(),
            headers,
            body: None,
        };
        let opened = match self.client.open(request).await {
            Ok(opened) => opened,
            Err(failure) if failure.may_pass() => return Err(failure.into()),
            Err(failure) => return Err(StepError::from(failure).into_permanent()),
        };
        let is_unchanged = opened.status == StatusCode::NOT_MODIFIED && validators.is_some();
        if opened.status.is_success() || is_unchanged {
            return Ok(opened);
        }
        Err(refusal(&self.complaint(opened).await))
    }

    /// Reads what an answer that is no success says; a server that does not end saying it has said
    /// enough by its status.
    async fn complaint(&self, opened: Opened) -> Answer {
        let silent = Answer {
            status: opened.status,
            headers: opened.headers.clone(),
            body: "".into(),
            url: opened.url.clone(),
        };
        match tokio::time::timeout(self.timeout, opened.whole()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => silent,
        }
    }
}

fn refusal(answer: &Answer) -> StepError {
    match answer.verdict(&[], SystemTime::now()) {
        // The source is busy, and says for how long: that is no failure.
        Verdict::Retry { after: Some(after) } => StepError::rebound(after, answer.complaint()),
        Verdict::Retry { after: None } => StepError::retry(answer.complaint()),
        Verdict::Done | Verdict::Permanent => StepError::permanent(answer.complaint()),
    }
}

/// How long it is worth asking for one page again.
#[derive(Debug)]
pub(crate) struct Patience {
    /// The longest wait that is waited out here.
    most: Duration,
    tries: u32,
    wait: Duration,
}

impl Patience {
    pub(crate) fn new(most: Duration) -> Self {
        Self {
            most,
            tries: 0,
            wait: FIRST_WAIT,
        }
    }

    /// Waits after an error, or gives it back if that is of no use.
    pub(crate) async fn wait_after(&mut self, error: StepError) -> Result<()> {
        self.tries += 1;
        let wait = error.delay().unwrap_or(self.wait);
        if error.fate() == Fate::Permanent || self.tries == TRIES || wait > self.most {
            return Err(error);
        }
        tracing::debug!("asking again in {wait:?}: {error}");
        tokio::time::sleep(wait).await;
        self.wait *= 2;
        Ok(())
    }
}
