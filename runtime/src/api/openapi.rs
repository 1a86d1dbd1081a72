//! The OpenAPI document.

use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{dead, hooks, probes, routes};

/// The document, made from the handlers.
#[derive(OpenApi)]
#[openapi(
    info(title = "Towpath", description = "The control plane of Towpath."),
    modifiers(&TokenScheme),
    paths(
        routes::plan, routes::apply, routes::list, routes::status, routes::delete, routes::pause,
        routes::resume, routes::drain, routes::stop, routes::pause_step, routes::resume_step,
        routes::drain_step, routes::stop_step, routes::delete_step, routes::versions, routes::diff, routes::rollback, routes::scale, routes::run, routes::runs, routes::run_by_id, routes::run_cancel,
        routes::checkpoint, routes::set_checkpoint, routes::reset_checkpoint,
        routes::logs, routes::dead_list, routes::dead_show, routes::dead_replay,
        routes::dead_discard, dead::groups, dead::export, dead::replay, dead::discard,
        dead::edit, dead::set_body, dead::undo_body, dead::jobs, dead::job, dead::cancel,
        routes::why, routes::retries, routes::retries_now, routes::retries_cancel,
        routes::secrets, routes::set_secret, routes::delete_secret,
        routes::rotate_webhook, routes::manifest, hooks::hook, probes::live, probes::ready, probes::metrics,
    )
)]
pub struct ApiDoc;

struct TokenScheme;

impl Modify for TokenScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", scheme);
    }
}
