//! Which proxy a URL is fetched through, by the variables that curl knows.

use std::net::IpAddr;

use super::url::Url;

/// Proxy URLs by the scheme they serve, and the hosts that need none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<String>,
    https: Option<String>,
    all: Option<String>,
    none_for: Vec<String>,
}

impl Proxies {
    /// `HTTP_PROXY` in capitals is ignored, as curl does: in CGI programs a client sets it.
    pub fn from_env<'a>(variable: impl Fn(&str) -> Option<&'a [u8]>) -> Proxies {
        let first = |names: &[&str]| {
            let set = names.iter().filter_map(|name| std::str::from_utf8(variable(name)?).ok());
            set.map(str::trim).find(|value| !value.is_empty()).map(str::to_owned)
        };
        let none_for = first(&["no_proxy", "NO_PROXY"]).unwrap_or_default();
        let none_for = none_for.split([',', ' ']).filter(|pattern| !pattern.is_empty());
        Proxies {
            http: first(&["http_proxy"]),
            https: first(&["https_proxy", "HTTPS_PROXY"]),
            all: first(&["all_proxy", "ALL_PROXY"]),
            none_for: none_for.map(str::to_owned).collect(),
        }
    }

    /// The proxy to fetch `url` through; its scheme is `http` where none was written.
    pub fn choose(&self, url: &Url) -> Option<String> {
        let own = if url.scheme == "https" { &self.https } else { &self.http };
        let proxy = own.as_ref().or(self.all.as_ref())?;
        if self.none_for.iter().any(|pattern| covers(pattern, url.host())) {
            return None;
        }
        Some(if proxy.contains("://") { proxy.clone() } else { format!("http://{proxy}") })
    }
}

/// Whether an entry of `no_proxy` means `host`: `*`, an address range, or a domain and all below it.
fn covers(pattern: &str, host: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    if let Ok(address) = host.parse() {
        return range_covers(pattern.trim_matches(['[', ']']), address);
    }
    let pattern = pattern.trim_start_matches('.').trim_end_matches('.').as_bytes();
    let host = host.trim_end_matches('.').as_bytes();
    let Some(at) = host.len().checked_sub(pattern.len()).filter(|_| !pattern.is_empty()) else {
        return false;
    };
    let (before, suffix) = host.split_at(at);
    suffix.eq_ignore_ascii_case(pattern) && (before.is_empty() || before.ends_with(b"."))
}

fn range_covers(pattern: &str, host: IpAddr) -> bool {
    let (network, bits) = match pattern.split_once('/') {
        Some((network, bits)) => (network, bits.parse().ok()),
        None => (pattern, Some(u32::MAX)),
    };
    let (Ok(network), Some(bits)) = (network.parse(), bits) else {
        return false;
    };
    match (network, host) {
        (IpAddr::V4(network), IpAddr::V4(host)) => {
            let differing = network.to_bits() ^ host.to_bits();
            differing.leading_zeros() >= bits.min(u32::BITS)
        }
        (IpAddr::V6(network), IpAddr::V6(host)) => {
            let differing = network.to_bits() ^ host.to_bits();
            differing.leading_zeros() >= bits.min(u128::BITS)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(env: &[(&str, &'static str)], url: &str) -> Option<String> {
        let variable = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_bytes());
        Proxies::from_env(variable).choose(&Url::parse(url).unwrap())
    }

    #[test]
    fn variables_are_chosen_by_scheme() {
        let env =
            [("http_proxy", "a:1"), ("HTTPS_PROXY", "https://b"), ("all_proxy", "socks5h://c"), ("HTTP_PROXY", "x")];
        assert_eq!(chosen(&env, "http://h/").as_deref(), Some("http://a:1"));
        assert_eq!(chosen(&env, "https://h/").as_deref(), Some("https://b"));
        assert_eq!(chosen(&env[2..], "http://h/").as_deref(), Some("socks5h://c"));
        assert_eq!(chosen(&env[3..], "http://h/"), None);
        assert_eq!(chosen(&[("http_proxy", ""), ("https_proxy", "")], "http://h/"), None);
    }

    #[test]
    fn some_hosts_need_none() {
        let direct = |no_proxy: &'static str, host: &str| {
            chosen(&[("all_proxy", "p"), ("no_proxy", no_proxy)], &format!("http://{host}/")).is_none()
        };
        assert!(direct("*", "h"));
        assert!(direct("x, .Example.org", "cache.example.ORG:8080"));
        assert!(direct("example.org", "example.org"));
        assert!(!direct("example.org", "badexample.org"));
        assert!(!direct("cache.example.org", "example.org"));
        assert!(!direct(".", "example.org"));
        assert!(direct("10.0.0.0/8", "10.1.2.3"));
        assert!(!direct("10.0.0.0/8", "11.1.2.3"));
        assert!(direct("0.0.0.0/0", "11.1.2.3"));
        assert!(!direct("10.0.0.0/99999999999", "10.0.0.0"));
        assert!(direct("127.0.0.1", "127.0.0.1"));
        assert!(!direct("127.0.0.1", "127.0.0.2"));
        assert!(direct("fd00::/8", "[fd12::1]:443"));
        assert!(direct("[::1]", "[::1]"));
    }
}
