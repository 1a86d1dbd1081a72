//! What step images say of themselves.

use towpath_protocol::manifest::Manifest;

use super::Control;
use super::error::{ControlError, ErrorKind};

impl Control {
    /// The manifest of an image, as the engine has it.
    pub async fn manifest(&self, image: &str) -> Result<Manifest, ControlError> {
        let Some(found) = self.engine().image(image).await? else {
            let message = format!("there is no image `{image}`");
            return Err(ControlError::new(
                ErrorKind::NotFound,
                "no_such_image",
                message,
            ));
        };
        if let Some(reason) = found.unreadable {
            let message = format!("the manifest of `{image}` cannot be read: {reason}");
            return Err(ControlError::new(
                ErrorKind::Conflict,
                "bad_manifest",
                message,
            ));
        }
        found.manifest.ok_or_else(|| {
            let message = format!("the image `{image}` has no manifest");
            ControlError::new(ErrorKind::NotFound, "no_manifest", message)
                .hint("`towpath step pack` makes an image with one")
        })
    }
}
