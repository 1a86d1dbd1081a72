//! JSON as text: finds a member by its path, and takes out white space, without building a tree.
//!
//! A trigger passes items on as its source wrote them: a number with thirty digits stays one, and
//! a page of sixteen megabytes costs sixteen megabytes.

mod compact;
mod path;
mod stream;

pub use compact::compact;
pub use path::{NotAList, Path, items, text};
pub use stream::{Rest, StreamError, stream_items};
