//! Triggers that register at their sources, on a simulated engine and broker.

use towpath_protocol::manifest::{Kind, Manifest};
use towpath_protocol::office::RegistrationOutcome;

use super::super::error::ErrorKind;
use super::super::testing::{Bench, draft, image};
use super::*;
use crate::control::{DeleteChoices, Verb};
use crate::reconcile::FlowState;

const FLOW: &str = "
flow: hooked
trigger: { id: hook, image: 'shop:1', webhook: true, with: { shop: one } }
actions:
  - { id: log, image: 'log:1' }
";

fn registering(name: &str) -> Image {
    let manifest = Manifest {
        contract: towpath_protocol::CONTRACT,
        name: name.into(),
        version: String::new(),
        description: String::new(),
        kind: Kind::Webhook,
        config: None,
        input: None,
        ports: BTreeMap::from([("out".to_owned(), serde_json::Value::Null)]),
        concurrency: None,
        batch: None,
        needs_batch: false,
        registers: true,
    };
    Image {
        manifest: Some(manifest),
        ..image(name)
    }
}

/// What the control plane called the trigger to do: those that were not looked at yet.
struct Hooked {
    bench: Bench,
    seen: usize,
}

impl Hooked {
    async fn new() -> Self {
        let bench = Bench::new().await;
        bench.engine.add_image("shop:1", registering("shop"));
        bench.engine.add_image("other:1", registering("other"));
        bench.control.apply(&draft(FLOW)).await.unwrap();
        Self { bench, seen: 0 }
    }

    /// Lets containers start and report, and the control plane look; returns the calls.
    async fn look(&mut self) -> Vec<Register> {
        self.bench.settle().await;
        self.bench.report(0);
        for one in self.bench.engine.containers() {
            let replies = format!("replies of {}", one.identity.step);
            self.bench
                .control
                .reports
                .note_address(&one.identity, &replies);
        }
        self.look_again().await
    }

    async fn look_again(&mut self) -> Vec<Register> {
        let mut troubled = Troubled::new();
        self.bench
            .control
            .look_at_registrations(&mut troubled)
            .await;
        assert!(troubled.is_empty(), "{troubled:?}");
        let answers = self.bench.broker.answers();
        let calls = answers[self.seen..].iter().map(|answer| {
            assert_eq!(answer.reply_to, "replies of hook");
            match serde_json::from_slice(&answer.body).unwrap() {
                ToAgent::Register(register) => register,
                other => panic!("{other:?}"),
            }
        });
        let calls = calls.collect();
        self.seen = answers.len();
        calls
    }

    async fn answer(&self, call: &Register, outcome: RegistrationOutcome) {
        let now = (self.bench.control.scheduler.clock)();
        let store = &self.bench.control.catalog.store;
        let is_last = store
            .registration_answered(call.call, move |last| last.answered(outcome, now))
            .await;
        assert!(is_last.unwrap());
    }

    async fn registered() -> Self {
        let mut it = Self::new().await;
        let calls = it.look().await;
        assert_eq!(calls.len(), 1);
        it.answer(&calls[0], activated("{\"id\":7}")).await;
        it
    }

    async fn view(&self) -> RegistrationView {
        let status = self.bench.control.status("hooked").await.unwrap();
        status.registration.unwrap()
    }

    async fn has_flow(&self) -> bool {
        let store = &self.bench.control.catalog.store;
        store.flow("hooked").await.unwrap().is_some()
    }

    async fn delete(&self) {
        let choices = DeleteChoices::default();
        let done = self.bench.control.delete("hooked", choices).await.unwrap();
        assert!(done.message.contains("is being deleted"), "{done:?}");
    }
}

fn activated(kept: &str) -> RegistrationOutcome {
    RegistrationOutcome::Activated {
        kept: Some(RawValue::from_string(kept.into()).unwrap()),
    }
}

#[tokio::test]
async fn a_trigger_is_called_with_its_url_once_it_is_there() {
    let mut it = Hooked::new().await;
    assert!(it.look_again().await.is_empty(), "there is no container");
    let view = it.view().await;
    assert_eq!(view.state, RegistrationState::Registering);
    assert!(view.reason.unwrap().contains("waits for a container"));

    let calls = it.look().await;
    let status = it.bench.control.status("hooked").await.unwrap();
    assert_eq!(Some(&calls[0].url), status.webhook_url.as_ref());
    assert_eq!(calls[0].act, RegistrationAct::Activate);
    assert!(calls[0].kept.is_none());
    assert!(it.look_again().await.is_empty(), "it waits for an answer");
    let failed = RegistrationOutcome::Failed {
        reason: "the shop says 500".into(),
        delay_ms: None,
        is_permanent: false,
    };
    it.answer(&calls[0], failed).await;
    let status = it.bench.control.status("hooked").await.unwrap();
    assert!(status.reason.unwrap().contains("the shop says 500"));
    assert!(it.look_again().await.is_empty(), "it waits a little");
    assert!(it.view().await.next_at.is_some());
}

#[tokio::test]
async fn another_url_or_configuration_is_registered_as_well() {
    let mut it = Hooked::registered().await;
    assert_eq!(it.view().await.state, RegistrationState::Registered);
    assert!(it.look().await.is_empty());
    let keys = it.bench.control.rotate_webhook("hooked", Duration::ZERO);
    let url = keys.await.unwrap().webhook_url;
    let calls = it.look().await;
    assert_eq!(calls[0].url, url);
    assert_eq!(calls[0].kept.as_ref().unwrap().get(), "{\"id\":7}");
    it.answer(&calls[0], activated("{\"id\":8}")).await;

    // A change that has nothing to do with it.
    let slower = FLOW.replace("webhook: true", "webhook: true, timeout: 10s");
    it.bench.control.apply(&draft(&slower)).await.unwrap();
    assert!(it.look().await.is_empty());
    let other = slower.replace("shop: one", "shop: two");
    it.bench.control.apply(&draft(&other)).await.unwrap();
    let calls = it.look().await;
    assert_eq!(calls.len(), 1, "the container of the old one is not called");
    assert_eq!(calls[0].kept.as_ref().unwrap().get(), "{\"id\":8}");
}

#[tokio::test]
async fn a_flow_goes_when_its_trigger_has_taken_back_what_it_registered() {
    let mut it = Hooked::registered().await;
    it.delete().await;
    let live = it.bench.live.borrow().get("hooked").unwrap().state;
    assert_eq!(live, FlowState::Stopped, "it takes no requests any more");
    let calls = it.look().await;
    assert_eq!(calls[0].act, RegistrationAct::Deactivate);
    assert_eq!(calls[0].kept.as_ref().unwrap().get(), "{\"id\":7}");
    assert!(it.has_flow().await);
    let status = it.bench.control.status("hooked").await.unwrap();
    assert!(status.deleting);
    it.answer(&calls[0], RegistrationOutcome::Deactivated).await;
    assert!(it.look_again().await.is_empty());
    assert!(!it.has_flow().await);
}

#[tokio::test]
async fn a_stopped_flow_gets_a_container_to_take_back_what_is_registered() {
    let mut it = Hooked::registered().await;
    it.bench.control.tell("hooked", Verb::Stop).await.unwrap();
    it.bench.settle().await;
    assert!(it.bench.containers().is_empty());
    it.delete().await;
    let calls = it.look().await;
    assert_eq!(calls[0].act, RegistrationAct::Deactivate);
    let names = it.bench.containers();
    assert_eq!(names.len(), 1, "the trigger alone: {names:?}");
    let status = it.bench.control.status("hooked").await.unwrap();
    assert_eq!(status.steps[0].state, "paused", "it handles nothing");
}

#[tokio::test]
async fn whoever_cannot_wait_leaves_it_registered() {
    let it = Hooked::registered().await;
    it.delete().await;
    let choices = DeleteChoices {
        leave_registered: true,
        ..DeleteChoices::default()
    };
    let done = it.bench.control.delete("hooked", choices).await.unwrap();
    assert_eq!(done.message, "`hooked` is deleted");
    assert!(!it.has_flow().await);
}

#[tokio::test]
async fn a_flow_that_is_applied_again_stays() {
    let mut it = Hooked::registered().await;
    it.delete().await;
    it.bench.control.apply(&draft(FLOW)).await.unwrap();
    assert!(it.look().await.is_empty(), "all is as it should be");
    assert!(it.has_flow().await);
    let live = it.bench.live.borrow().get("hooked").unwrap().state;
    assert_eq!(live, FlowState::Running);
}

#[tokio::test]
async fn a_trigger_that_is_registered_is_not_replaced_by_another() {
    let it = Hooked::registered().await;
    let others = [
        FLOW.replace("shop:1", "other:1"),
        FLOW.replace("image: 'shop:1', ", "")
            .replace(", with: { shop: one }", ""),
        FLOW.replace(
            "image: 'shop:1', webhook: true",
            "image: 'poll:1', every: 1h",
        ),
    ];
    for other in others {
        let error = it.bench.control.apply(&draft(&other)).await.unwrap_err();
        assert_eq!(
            (error.kind, error.code),
            (ErrorKind::Conflict, "still_registered"),
            "{other}"
        );
    }
}
