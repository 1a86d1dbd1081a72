//! The demonstration's CRM: where orders go to.

use anyhow::Result;
use towpath_demo::{crm, server};

fn main() -> Result<()> {
    let token: String = server::setting("DEMO_TOKEN", "demo-token".to_owned())?;
    server::run("the CRM", crm::router(&token, server::mischief()?))
}
