//! What is there is served, whole and in parts.

use proptest::prelude::*;
use shoal_node::http::link::Offer;
use shoal_node::upstream::Upstreams;
use shoal_store::{GcAction, GcRequest, Options, Store};
use shoal_wire::nix::narinfo::{Compression, NarInfo};
use shoal_wire::nix::signature::Signature;
use shoal_wire::nix::store_path::StoreDir;

use crate::lab::{Lab, Wanted, file_nar, nar_url, noise, tree_nar, words};

#[test]
fn a_cache_says_what_it_is() {
    let lab = Lab::new();
    let info = lab.get("/nix-cache-info");
    assert_eq!(info.text(), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
    assert_eq!((lab.get("/healthz").status, lab.get("/readyz").status), (200, 200));
    let metrics = lab.get("/metrics").text();
    assert!(metrics.contains("shoal_http_responses_total{status=\"2xx\"} 3"), "{metrics}");
    assert!(metrics.contains("shoal_http_unanswered_requests 1\n"), "{metrics}");
}

#[test]
fn a_narinfo_is_what_is_known_of_the_path() {
    for (offer, compression) in [(Offer::Auto, Compression::None), (Offer::Zstd, Compression::Zstd)] {
        let lab = Lab::offering(offer);
        let nar = file_nar(&words(300_000));
        let info = lab.add("words", &nar);
        let url = format!("/{}.narinfo", info.path.hash_part());
        let answer = lab.get(&url);
        let narinfo = NarInfo::parse(&StoreDir::default(), &answer.body).unwrap();
        assert_eq!((narinfo.info.path, narinfo.info.nar_hash), (info.path.clone(), info.nar_hash));
        assert_eq!(narinfo.compression, compression);
        let file = lab.get(&format!("/{}", narinfo.url));
        assert_eq!(narinfo.file_size, Some(file.body.len() as u64));
        let head = lab.ask("HEAD", &url, "");
        assert_eq!((head.status, head.header("content-length")), (200, answer.header("content-length")));
        assert!(head.body.is_empty());
    }
}

/// What was told before is in memory.
#[test]
fn a_narinfo_follows_what_becomes_of_its_path() {
    for offer in [Offer::Auto, Offer::Zstd] {
        let lab = Lab::offering(offer);
        let info = lab.add("words", &file_nar(&words(300_000)));
        let place = format!("/{}.narinfo", info.path.hash_part());
        let url = nar_url(&lab, &info);
        assert_eq!((lab.get(&place).status, lab.get(&url).status), (200, 200));
        let signature = Signature::new("late-1", [7; 64]).unwrap();
        assert!(lab.store.add_signatures(&info.path, std::slice::from_ref(&signature)).unwrap());
        assert!(lab.get(&place).text().contains(&format!("Sig: {signature}\n")));
        let request = GcRequest { paths: vec![info.path.clone()], ..GcRequest::new(GcAction::DeleteSpecific) };
        assert_eq!(lab.store.collect(&request).unwrap().paths, std::slice::from_ref(&info.path));
        assert_eq!((lab.get(&place).status, lab.get(&url).status), (404, 404));
        lab.add("words", &file_nar(&words(300_000)));
        let again = lab.get(&place);
        assert!(again.status == 200 && !again.text().contains("Sig: late-1"), "{again:?}");
    }
}

#[test]
fn what_is_absent_is_not_remembered() {
    let lab = Lab::new();
    for path in ["/00000000000000000000000000000000.narinfo", "/00000000000000000000000000000000.ls", "/nar/x.nar"] {
        let answer = lab.get(path);
        assert_eq!((answer.status, answer.header("cache-control")), (404, Some("no-store")), "{path}");
    }
}

/// A client that goes on with a .zst where it broke off would get the rest of another file once it is compressed anew.
#[test]
fn no_parts_are_given_of_a_file_that_will_be_compressed_anew() {
    // At this level most is stored in haste.
    let dir = tempfile::tempdir().unwrap();
    let options = Options { level: 19, segment_bytes: 1 << 30, ..Options::default() };
    let store = Store::open(&dir.path().join("store"), options).unwrap();
    let behind = Some((store, Upstreams::default()));
    let lab = Lab::with(Wanted { offer: Offer::Zstd, behind, ..Wanted::default() });
    let nar = file_nar(&words(16 << 20));
    let url = nar_url(&lab, &lab.add("words", &nar));
    assert!(lab.store.stats().unwrap().hasty_bytes > 4 << 20);
    let part = |url: &str| {
        let answer = lab.ask("GET", url, "Range: bytes=1000-1999\r\n");
        (answer.status, answer.header("accept-ranges").map(str::to_owned), answer.body.len())
    };
    let whole = lab.get(&url).body;
    assert_eq!(part(&url), (200, None, whole.len()));
    let in_parts = (206, Some("bytes".to_owned()), 1000);
    assert_eq!(part(url.strip_suffix(".zst").unwrap()), in_parts);
    lab.store.recompress(u64::MAX, &|| true).unwrap();
    let settled = lab.get(&url).body;
    assert!(settled.len() < whole.len() && zstd::decode_all(&settled[..]).unwrap() == nar);
    assert_eq!(part(&url), in_parts);
}

#[test]
fn frames_one_after_the_other_are_a_zst_file_of_the_nar() {
    let lab = Lab::offering(Offer::Zstd);
    // Compressed and raw frames, and more than a buffer holds.
    let nar = file_nar(&[words(700_000), noise(700_000), vec![0; 3_000_000]].concat());
    let info = lab.add("mixed", &nar);
    let url = nar_url(&lab, &info);
    let answer = lab.get(&url);
    assert!(answer.is_whole && url.ends_with(".nar.zst"), "{}", answer.head);
    assert!(zstd::decode_all(&answer.body[..]).unwrap() == nar);
    // The plain form is there too, and comes encoded to who can decode it.
    let plain = url.strip_suffix(".zst").unwrap();
    assert!(lab.get(plain).body == nar);
    let encoded = lab.ask("GET", plain, "Accept-Encoding: gzip, zstd\r\n");
    assert_eq!((encoded.header("content-encoding"), encoded.header("accept-ranges")), (Some("zstd"), None));
    assert!(zstd::decode_all(&encoded.body[..]).unwrap() == nar);
    assert!(lab.ask("GET", plain, "Accept-Encoding: gzip, zstd;q=0\r\n").body == nar);
}

#[test]
fn parts_of_a_nar_are_parts_of_the_whole() {
    for offer in [Offer::None, Offer::Zstd] {
        let lab = Lab::offering(offer);
        // Too little to be stored in haste.
        let info = lab.add("mixed", &file_nar(&[words(300_000), noise(100_000)].concat()));
        let url = nar_url(&lab, &info);
        let whole = lab.get(&url);
        let len = whole.body.len();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(64));
        let ranges = (0..len, 0..len).prop_map(|(a, b)| (a.min(b), a.max(b)));
        let checked = runner.run(&ranges, |(first, last)| {
            let part = lab.ask("GET", &url, &format!("Range: bytes={first}-{last}\r\n"));
            let range = format!("bytes {first}-{last}/{len}");
            prop_assert_eq!((part.status, part.header("content-range")), (206, Some(range.as_str())));
            prop_assert!(part.body == whole.body[first..=last]);
            Ok(())
        });
        checked.unwrap();
        let etag = whole.header("etag").unwrap();
        let rest = lab.ask("GET", &url, &format!("Range: bytes=1000-\r\nIf-Range: {etag}\r\n"));
        assert!(rest.status == 206 && rest.body == whole.body[1000..]);
        let changed = lab.ask("GET", &url, "Range: bytes=1000-\r\nIf-Range: \"other\"\r\n");
        assert!(changed.status == 200 && changed.body == whole.body);
        let beyond = lab.ask("GET", &url, &format!("Range: bytes={len}-\r\n"));
        assert_eq!((beyond.status, beyond.header("content-range")), (416, Some(format!("bytes */{len}").as_str())));
        assert_eq!(lab.ask("GET", &url, &format!("If-None-Match: {etag}\r\n")).status, 304);
        let head = lab.ask("HEAD", &url, "");
        assert_eq!(head.header("content-length"), Some(len.to_string().as_str()));
        assert!(head.header("cache-control").unwrap().contains("immutable"));
        let head = lab.ask("HEAD", &url, "Range: bytes=0-9\r\n");
        assert_eq!((head.status, head.header("content-length")), (200, Some(len.to_string().as_str())));
    }
}

#[test]
fn files_of_a_path_can_be_looked_at() {
    let lab = Lab::new();
    let other = lab.add("other", &file_nar(b"other"));
    let absolute = format!("/nix/store/{}", other.path.base_name());
    let files: [(&str, &[u8]); 2] = [("a<b>.txt", b"0123456789"), ("page.html", b"<script>1</script>")];
    let links =
        [("beside", "./a<b>.txt"), ("elsewhere", absolute.as_str()), ("out", "../../etc/passwd"), ("root", "/etc")];
    let info = lab.add("tree", &tree_nar(&files, &links));
    let base = format!("/serve/{}", info.path.base_name());
    assert_eq!(lab.get(&base).header("location"), Some(format!("{base}/").as_str()));
    let page = lab.get(&format!("{base}/")).text();
    assert!(page.contains("<a href=\"./a%3Cb%3E.txt\">a&lt;b&gt;.txt</a>"), "{page}");
    let file = lab.ask("GET", &format!("{base}/a%3Cb%3E.txt"), "Range: bytes=2-4\r\n");
    assert_eq!((file.status, file.text().as_str()), (206, "234"));
    assert_eq!(file.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(lab.get(&format!("{base}/page.html")).header("content-security-policy"), Some("sandbox"));
    let beside = lab.get(&format!("{base}/beside"));
    assert_eq!(beside.header("location"), Some(format!("{base}/a%3Cb%3E.txt").as_str()));
    let elsewhere = lab.get(&format!("{base}/elsewhere"));
    let location = elsewhere.header("location").unwrap();
    assert_eq!(lab.get(location).text(), "other");
    for name in ["out", "root", "absent", "..", "../other", "%2e%2e/%2e%2e", "a%00b"] {
        assert_eq!(lab.get(&format!("{base}/{name}")).status, 404, "{name}");
    }
    let listing: serde_json::Value =
        serde_json::from_slice(&lab.get(&format!("/{}.ls", info.path.hash_part())).body).unwrap();
    assert_eq!(listing["root"]["entries"]["a<b>.txt"]["size"], 10);
    assert!(listing["root"]["entries"]["a<b>.txt"]["narOffset"].as_u64() > Some(0));
}

#[test]
fn what_takes_a_token_is_kept_by_no_cache_that_others_use() {
    let lab = Lab::with(Wanted { takes_uploads: true, is_closed: true, ..Wanted::default() });
    let info = lab.add("p", &file_nar(b"p"));
    let token = format!("Authorization: Bearer {}\r\n", lab.token);
    let narinfo = format!("/{}.narinfo", info.path.hash_part());
    let nar = lab.ask("GET", &narinfo, &token).text();
    let nar = format!("/{}", nar.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap());
    for url in [narinfo.as_str(), nar.as_str(), "/nix-cache-info"] {
        assert_eq!(lab.get(url).status, 401);
        let answer = lab.ask("GET", url, &token);
        assert_eq!(answer.status, 200);
        let caching = answer.header("cache-control").unwrap();
        assert!(caching.starts_with("private, max-age="), "{url}: {caching}");
    }
}
