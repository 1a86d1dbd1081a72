//! The surface of the command line.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::{ExitStatus, definition, main};

fn run(arguments: &[&str]) -> ExitStatus {
    let arguments = std::iter::once("towpath")
        .chain(arguments.iter().copied())
        .map(OsString::from);
    main(arguments, BTreeMap::new())
}

fn helps(command: &mut clap::Command, path: &str, all: &mut String) {
    let help = command.render_long_help();
    *all = format!("{all}\n$ {path} --help\n{help}");
    let names: Vec<String> = command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .filter(|name| name != "help")
        .collect();
    for name in names {
        if let Some(command) = command.find_subcommand_mut(&name) {
            helps(command, &format!("{path} {name}"), all);
        }
    }
}

#[test]
fn every_command_explains_itself() {
    let mut all = String::new();
    let mut command = definition().term_width(100);
    command.build();
    helps(&mut command, "towpath", &mut all);
    insta::assert_snapshot!(all);
}

#[test]
fn exit_codes_say_done_no_or_could_not() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let right = write(
        "right.yaml",
        b"flow: a\ntrigger: { id: t, webhook: true }\nactions: [{ id: log, image: \"log:1\" }]\n",
    );
    let wrong = write("wrong.yaml", b"flow: a\ntriger: {}\n");
    let large = write("large.yaml", &vec![b'#'; 10 << 20]);
    let bytes = write("bytes.yaml", b"flow: \xff\n");
    let nested = write("nested.yaml", "[".repeat(100_000).as_bytes());
    assert_eq!(run(&["--version"]), ExitStatus::Done);
    assert_eq!(run(&["check", "--help"]), ExitStatus::Done);
    assert_eq!(run(&["check", "--offline", &right]), ExitStatus::Done);
    for file in [&wrong, &large, &bytes, &nested] {
        assert_eq!(run(&["check", "--offline", file]), ExitStatus::No, "{file}");
    }
    // These cannot even be sent.
    for file in [&large, &bytes] {
        assert_eq!(run(&["apply", file]), ExitStatus::No, "{file}");
    }
    assert_eq!(run(&["check", "no-such-file.yaml"]), ExitStatus::CouldNot);
    assert_eq!(run(&["nosuch"]), ExitStatus::CouldNot);
    assert_eq!(run(&["--server", "ftp://x", "list"]), ExitStatus::CouldNot);
    let data = folder.path().to_str().unwrap();
    assert_eq!(
        run(&["--data", data, "list"]),
        ExitStatus::CouldNot,
        "there is no token"
    );
    let nobody = ["--token", "x", "--server", "http://127.0.0.1:1", "list"];
    assert_eq!(run(&nobody), ExitStatus::CouldNot);
    assert_eq!(
        run(&[
            "--token",
            "x",
            "--server",
            "http://127.0.0.1:1",
            "delete",
            "a"
        ]),
        ExitStatus::No,
        "nobody said yes"
    );
}

#[test]
fn no_command_takes_a_secret_as_an_argument() {
    let command = definition();
    let set = command
        .find_subcommand("secret")
        .unwrap()
        .find_subcommand("set")
        .unwrap();
    let own: Vec<_> = set
        .get_arguments()
        .map(|argument| argument.get_id().as_str())
        .collect();
    assert_eq!(own, ["name"]);
}

#[test]
fn the_definition_holds_together() {
    definition().debug_assert();
}
