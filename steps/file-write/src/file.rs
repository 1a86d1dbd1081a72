//! Writing to a file, so that it holds all or nothing of what is said to be in it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// Adds rows to the end of a file, after `head` if it has nothing yet, and returns when they are on
/// the disk. Replicas that write to one file wait for each other.
///
/// Rows that were cut off, because the machine or the process ended in the middle, stay as a line of
/// their own: the ones that are added begin a new one.
pub(crate) fn append(path: &Path, head: &[u8], rows: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)?;
    // Let go of when the file is closed.
    file.lock()?;
    let length = file.metadata()?.len();
    let mut text = Vec::with_capacity(head.len() + rows.len() + 1);
    if length == 0 {
        text.extend_from_slice(head);
    } else if last_byte(&mut file)? != b'\n' {
        text.push(b'\n');
    }
    text.extend_from_slice(rows);
    file.write_all(&text)?;
    file.sync_data()?;
    if length == 0 {
        sync_folder(path)?;
    }
    Ok(())
}

/// Makes `content` all there is in a file: whoever reads it sees it whole, or as it was before.
/// `number` tells apart those that write to it at the same time.
pub(crate) fn replace(path: &Path, content: &[u8], number: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}.{number}"));
    let mut file = File::create(&hidden)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    let renamed = written.and_then(|()| std::fs::rename(&hidden, path));
    if let Err(error) = renamed {
        // What is wrong is what is said; that a file cannot be removed follows from it.
        drop(std::fs::remove_file(&hidden));
        return Err(error);
    }
    sync_folder(path)
}

fn last_byte(file: &mut File) -> io::Result<u8> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last[0])
}

/// The name of a new file is on the disk when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_stays_a_line_of_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.csv");
        append(&path, b"id\n", b"1\n2\n").expect("written");
        append(&path, b"id\n", b"3\n").expect("written");
        std::fs::write(&path, "id\n1\n2\n3\n4,cut o").expect("written");
        append(&path, b"id\n", b"4\n").expect("written");
        let text = std::fs::read_to_string(&path).expect("text");
        assert_eq!(text, "id\n1\n2\n3\n4,cut o\n4\n");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        replace(&path, b"one", "1").expect("written");
        replace(&path, b"two", "2").expect("written");
        assert_eq!(std::fs::read(&path).expect("text"), b"two");
        let names = std::fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(names, 1);
        let error = replace(&folder.path().join("no/a"), b"x", "1");
        assert_eq!(error.map_err(|it| it.kind()), Err(io::ErrorKind::NotFound));
    }
}
