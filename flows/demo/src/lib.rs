//! The demonstration's two ends: a shop with orders, and a CRM that is to hold every one of them
//! exactly once.
//!
//! Both are deliberately like the real world: lists come in pages, there is a limit of requests,
//! and now and then an answer is a 429, a 500, or slow. Which request suffers follows from a seed,
//! so a run can be repeated.

pub mod crm;
pub mod mischief;
pub mod orders;
pub mod server;
pub mod shop;
