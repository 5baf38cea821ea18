//! Settings from flags, variables and a file.

use super::*;
use std::os::unix::fs::PermissionsExt;

/// Gathers settings from flags, variables and the text of a configuration file.
fn gather(
    flags: &[&str],
    variables: &[(&str, &str)],
    file: Option<&str>,
) -> Result<Settings, Stop> {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("sheep.toml");
    if let Some(text) = file {
        std::fs::write(&path, text).expect("written");
    }
    let arguments = [&["sheep"], flags].concat().iter().map(Into::into).collect();
    let variables: Vec<(OsString, OsString)> =
        variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Settings::gather(arguments, &variables, &path)
}

fn token() -> String {
    let (cluster, id) = (proto::ClusterId(1), cluster::TokenId(2));
    let (secret, authority) = ([3; 16], cluster::Digest([4; 32]));
    let (expires_unix_s, uses, seeds) = (5, 6, Vec::new());
    TokenText { cluster, id, secret, authority, expires_unix_s, uses, seeds }.print()
}

fn refused(result: Result<Settings, Stop>) -> String {
    match result {
        Err(Stop::Usage(sentence)) => sentence,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let check = |flag: Option<&str>, variable: Option<&str>, key: Option<&str>, limit| {
        let flags: Vec<_> = flag.into_iter().flat_map(|value| ["--limit", value]).collect();
        let variables: Vec<_> = variable.into_iter().map(|v| ("SHEEP_LIMIT", v)).collect();
        let file = key.map(|value| format!("limit = {value}"));
        let settings = gather(&flags, &variables, file.as_deref()).expect("right");
        assert_eq!(settings.limit, limit);
    };
    check(None, None, None, None);
    check(None, None, Some("\"3G\""), Some(3 << 30));
    check(None, None, Some("4096"), Some(4096));
    check(None, Some("2G"), Some("\"3G\""), Some(2 << 30));
    check(Some("1G"), Some("2G"), Some("\"3G\""), Some(1 << 30));
    check(Some("1G"), None, Some("\"3G\""), Some(1 << 30));
}

#[test]
fn every_setting_is_documented_and_works_from_every_source() {
    let token = token();
    let token_file = tempfile::NamedTempFile::new().expect("a scratch file");
    std::fs::write(token_file.path(), format!("{token}\n")).expect("written");
    let samples = [
        ("data", "/tmp/x"),
        ("config", ""),
        ("disk", "/dev/sdx"),
        ("limit", "5G"),
        ("disk-log", "64M"),
        ("map-cache", "32M"),
        ("scrub-rate", "1M"),
        ("socket-group", "1234"),
        ("nbd-listen", "127.0.0.1:1"),
        ("metrics-listen", "[::1]:2"),
        ("direct-io", "off"),
        ("disk-engine", "threads"),
        ("stop-timeout", "7"),
        ("log-level", "debug"),
        ("trash-expiry", "7d"),
        ("trash-grace", "0"),
        ("rebuild-after", "1h"),
        ("fill-rate", "1M"),
        ("listen", "127.0.0.1:3"),
        ("advertise", "192.0.2.7:7117,[2001:db8::7]:1"),
        ("join", &token),
        ("token-file", token_file.path().to_str().expect("text")),
        ("plain-peers", "loopback"),
        ("witness", "on"),
    ];
    assert_eq!(samples.map(|(name, _)| name).to_vec(), {
        SETTINGS.iter().map(|setting| setting.name).collect::<Vec<_>>()
    });
    let help = command().render_long_help().to_string();
    for (setting, (name, value)) in SETTINGS.iter().zip(samples) {
        assert!(setting.doc.ends_with('.') && !setting.limit.is_empty(), "{name}");
        assert_eq!(help.contains(&format!("--{name} ")), !setting.hidden, "{name}");
        if name == CONFIG {
            continue;
        }
        let flag = gather(&[&format!("--{name}"), value], &[], None).expect(name);
        let variable = gather(&[], &[(&setting.variable(), value)], None).expect(name);
        let line = format!("{} = \"{value}\"", setting.key());
        let file = gather(&[], &[], Some(&line)).expect(name);
        assert_eq!(flag, variable, "{name}");
        assert_eq!(flag, file, "{name}");
        assert_ne!(flag, Settings::defaults(), "{name} is taken and ignored");
    }
}

#[test]
fn nonsense_is_refused_with_its_place_and_a_remedy() {
    let flag = |flags: &[&str], part: &str| {
        let sentence = refused(gather(flags, &[], None));
        assert!(sentence.contains(part), "{sentence}");
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
    };
    flag(&["--limit", "20X"], "--limit: `20X` is wrong: `X` in `20X` is no unit");
    flag(&["--limit", "0"], "more than nothing");
    flag(&["--map-cache", "1M"], "at least 4.0 MiB");
    flag(&["--nbd-listen", "0.0.0.0:10809"], "there is no TLS yet");
    flag(&["--nbd-listen", "localhost"], "write it like 127.0.0.1:10809");
    flag(&["--metrics-listen", "192.0.2.1:1"], "not a loopback address");
    flag(&["--listen", "7117"], "or none");
    flag(&["--advertise", "0.0.0.0:7117"], "that others could reach");
    flag(&["--advertise", "h:1"], "like 192.0.2.7:7117");
    flag(&["--join", "sheepdog-join-AAAA"], "is damaged; copy the whole line");
    flag(&["--token-file", ""], "must not be empty");
    let part = &token()[..60];
    let cut = refused(gather(&["--join", part], &[], None));
    assert!(!cut.contains(&part[20..]), "it shows a secret: {cut}");
    flag(&["--plain-peers", "on"], "is none of");
    flag(&["--socket-group", "no-such-group-here"], "groupadd");
    flag(&["--stop-timeout", "0"], "from 1 to 3600");
    flag(&["--trash-expiry", "1y"], "--trash-expiry: `1y` is wrong: `1y` is no span of time");
    flag(&["--trash-expiry", "523w"], "at most 3660d");
    flag(&["--rebuild-after", "5s"], "at least 6s");
    flag(&["--log-level", "loud"], "error, warn, info");
    flag(&["--log-level", "3"], "error, warn, info");
    flag(&["--direct-io", "maybe"], "on or off");
    flag(&["--data", ""], "must not be empty");
    flag(&["--bogus"], "see `sheep --help`");
    flag(&["stray"], "see `sheep --help`");
    flag(&["--config", "/nonexistent/sheep.toml"], "/nonexistent/sheep.toml");

    let file = |text: &str, part: &str| {
        let sentence = refused(gather(&[], &[], Some(text)));
        assert!(sentence.contains(part) && sentence.contains("sheep.toml"), "{sentence}");
    };
    file("limt = 5", "unknown key `limt`");
    file("config = \"x\"", "unknown key `config`");
    file("limit = [1]", "is of type array");
    file("limit = -5", "limit in");
    file("data = \"/x\"\nlimit = ", "line 2");

    let sentence = refused(gather(&[], &[("SHEEP_LIMIT", "x")], None));
    assert!(sentence.starts_with("environment variable SHEEP_LIMIT: `x`"), "{sentence}");
    let sentence = refused(gather(&[], &[("SHEEP_LIMT", "1G")], None));
    assert!(sentence.starts_with("unknown environment variable SHEEP_LIMT"), "{sentence}");
    assert!(sentence.contains("SHEEP_LIMIT"), "{sentence}");
    gather(&[], &[("SHEEPISH", "1"), ("NOTIFY_SOCKET", "/x")], None).expect("not ours");
}

#[test]
fn the_file_of_a_token_is_read_when_it_is_needed_and_the_nearer_of_two_tokens_wins() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("token");
    let name = path.to_str().expect("text");
    let settings = gather(&["--token-file", name], &[], None).expect("it is not read yet");
    assert_eq!(settings.token(false), Ok(None));
    let sentence = settings.token(true).expect_err("there is none");
    assert!(sentence.contains("check the path"), "{sentence}");
    std::fs::write(&path, format!("{}\n", token())).expect("written");
    let mode = |bits| std::fs::Permissions::from_mode(bits);
    std::fs::set_permissions(&path, mode(0o644)).expect("set");
    let sentence = settings.token(true).expect_err("others may read it");
    assert!(sentence.contains("chmod 600"), "{sentence}");
    std::fs::set_permissions(&path, mode(0o600)).expect("set");
    assert_eq!(settings.token(true).expect("read").expect("there").print(), token());

    let file = format!("token_file = \"{name}\"");
    let both = gather(&["--join", &token()], &[], Some(&file)).expect("right");
    assert!(both.join.is_some() && both.token_file.is_none());
    let file = format!("join = \"{}\"", token());
    let both = gather(&["--token-file", name], &[], Some(&file)).expect("right");
    assert!(both.join.is_none() && both.token_file.is_some());
}

#[test]
fn plain_on_this_machine_is_not_plain_to_others() {
    let [near, far] = ["127.0.0.1", "192.0.2.1"].map(|text| text.parse().expect("right"));
    let judged = |plain: Plain| [plain.is_for(near), plain.is_for(far)];
    assert_eq!(judged(Plain::No), [false, false]);
    assert_eq!(judged(Plain::Loopback), [true, false]);
    assert_eq!(judged(Plain::Everywhere), [true, true]);
}

#[test]
fn help_and_version_are_no_errors() {
    for flag in ["--help", "--version"] {
        assert!(matches!(gather(&[flag], &[], None), Err(Stop::Print(_))));
    }
}

#[test]
fn a_witness_is_said_in_a_word() {
    let witness = |flags: &[&str]| gather(flags, &[], None).map(|settings| settings.witness);
    assert_eq!(witness(&[]).expect("right"), None);
    assert_eq!(witness(&["--witness"]).expect("right"), Some(true));
    assert_eq!(witness(&["--witness", "--data", "/tmp/x"]).expect("right"), Some(true));
    assert_eq!(witness(&["--witness", "off"]).expect("right"), Some(false));
    let sentence = refused(gather(&["--witness", "perhaps"], &[], None));
    assert!(sentence.contains("--witness: `perhaps` must be on or off"), "{sentence}");
}
