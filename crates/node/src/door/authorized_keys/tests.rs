use super::*;

const KEY_A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPxqc1VBYQ5nWqgS3s2p7yXo5mO4b1nBsUo0E8P4S4vB";
const KEY_B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBGqQ3VBYQ5nWqgS3s2p7yXo5mO4b1nBsUo0E8P4S4vC";

fn key(text: &str) -> PublicKey {
    PublicKey::from_openssh(text).unwrap()
}

fn grants(text: &str) -> Vec<Grant> {
    let (keys, _) = parse(text);
    [KEY_A, KEY_B].iter().filter_map(|k| keys.get(&key(k).to_bytes().unwrap()).cloned()).collect()
}

#[test]
fn a_bare_key_is_admin() {
    let grant = Grant { role: Role::Admin, tenant: None, who: "alice@laptop".into() };
    assert_eq!(grants(&format!("# a comment\n\n{KEY_A} alice@laptop\n")), [grant]);
}

#[test]
fn role_and_tenant_come_before_the_key() {
    let text = format!("role=\"build\",tenant=\"team \\\"a, b\\\"\" {KEY_A} ci\nno-pty,role=\"read\"\t{KEY_B}\n");
    let [a, b] = <[Grant; 2]>::try_from(grants(&text)).unwrap();
    assert_eq!(a, Grant { role: Role::Build, tenant: Some("team \"a, b\"".into()), who: "ci".into() });
    assert_eq!(b.role, Role::Read);
    assert!(b.who.starts_with("SHA256:"), "{}", b.who);
}

#[test]
fn unknown_options_are_named_and_ignored_but_limits_that_we_cannot_keep_are_not() {
    let (keys, complaints) = parse(&format!("shiny {KEY_A}\nfrom=\"10.0.0.0/8\" {KEY_B}\n"));
    assert_eq!(keys.len(), 1);
    let texts: Vec<_> = complaints.iter().map(|complaint| (complaint.line, complaint.text.as_str())).collect();
    assert_eq!(
        texts,
        [(1, "unknown option shiny ignored"), (2, "option from cannot be enforced here, so this key is not let in")]
    );
}

#[test]
fn a_wrong_role_never_becomes_admin() {
    for line in ["role=\"root\"", "role", "role=\"\"", "role=\"admin", "tenant=\"\""] {
        assert_eq!(grants(&format!("{line} {KEY_A}")), [], "{line}");
    }
}

#[test]
fn garbage_lines_do_not_hide_good_ones() {
    let text = format!("{}\n{KEY_B}\nssh-ed25519 AAAA\nrole=\"read\"\n", &KEY_A[..40]);
    let (keys, complaints) = parse(&text);
    assert_eq!(keys.len(), 1);
    assert_eq!(complaints.iter().map(|complaint| complaint.line).collect::<Vec<_>>(), [1, 3, 4]);
}

#[test]
fn a_changed_file_counts_at_once_and_a_broken_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("authorized_keys");
    let keys = AuthorizedKeys::open(&path);
    assert!(keys.grant(&key(KEY_A)).is_none());

    std::fs::write(&path, KEY_A).unwrap();
    assert!(keys.grant(&key(KEY_A)).is_some());

    for broken in ["", "\n# all gone\n", "rubbish\n"] {
        std::fs::write(&path, broken).unwrap();
        assert!(keys.grant(&key(KEY_A)).is_some(), "{broken:?}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(keys.grant(&key(KEY_A)).is_some());

    let new = dir.path().join("new");
    std::fs::write(&new, KEY_B).unwrap();
    std::fs::rename(&new, &path).unwrap();
    assert!(keys.grant(&key(KEY_A)).is_none());
    assert!(keys.grant(&key(KEY_B)).is_some());
}
