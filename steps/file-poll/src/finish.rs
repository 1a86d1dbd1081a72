//! What becomes of a file that is finished. Each may be done twice.

use std::io::ErrorKind;
use std::path::Path;

use towpath_step::{Result, ResultExt as _};

use crate::find::Found;

/// Removes a file.
pub(crate) fn delete(file: &Found) -> Result<()> {
    match std::fs::remove_file(&file.path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("`{}` cannot be removed", file.name))
        }
        _ => Ok(()),
    }
}

/// Moves a file to a folder. Where there is one of its name already, it gets the number `begun` too.
pub(crate) fn move_to(folder: &Path, file: &Found, begun: u64) -> Result<()> {
    let place = || format!("`{}` cannot be moved to `{}`", file.name, folder.display());
    let name = file.path.file_name().unwrap_or_default();
    let mut target = folder.join(name);
    if target.exists() {
        let mut name = name.to_owned();
        name.push(format!(".{begun}"));
        target = folder.join(name);
    }
    match std::fs::rename(&file.path, &target) {
        // Two folders of the host are two file systems to a container.
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(target.file_name().unwrap_or_default());
            let hidden = folder.join(hidden);
            std::fs::copy(&file.path, &hidden).with_context(place)?;
            let copy = std::fs::File::open(&hidden).with_context(place)?;
            copy.sync_all().with_context(place)?;
            std::fs::rename(&hidden, &target).with_context(place)?;
            delete(file)
        }
        moved => moved.with_context(place),
    }
}
