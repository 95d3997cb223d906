//! The bytes of a URL, through interruptions.
//!
//! Invariants: bytes are given in order and none twice between two calls of [`Download::restart`]; attempts are counted
//! over the whole download; a fault that is not retried is kept for [`Download::into_fault`].

use std::io::{self, Read};
use std::thread::sleep;
use std::time::Duration;

use super::client::Client;
use super::fault::{Fault, Pace};
use super::progress::Progress;
use super::url::Url;
use crate::builtin::warn;

/// Longest wait that a server can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// How often and how soon to try again.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// Attempts in all.
    pub attempts: u32,
    /// Wait before the second attempt; doubled for each further one.
    pub delay: Duration,
    /// The same where the server is overloaded.
    pub delay_overloaded: Duration,
    pub delay_max: Duration,
}

impl Retries {
    /// Nix 2.34's for quick retries, Nix 2.36's (`filetransfer-retry-*`) for the rest.
    pub const DEFAULT: Retries = Retries {
        attempts: 5,
        delay: Duration::from_millis(250),
        delay_overloaded: Duration::from_secs(5),
        delay_max: Duration::from_secs(60),
    };

    /// The wait before attempt `attempt` + 1, `luck` of 255 between the least and the most.
    fn wait(&self, pace: Pace, attempt: u32, luck: u8) -> Duration {
        let (base, asked) = match pace {
            Pace::Quick(asked) => (self.delay, asked),
            Pace::Slow(asked) => (self.delay_overloaded, asked),
        };
        let doubled = base.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        let spread = doubled.min(self.delay_max) * u32::from(luck) / 255;
        asked.unwrap_or_default().min(RETRY_AFTER_MAX) + spread
    }
}

pub struct Download<'a> {
    client: &'a Client,
    retries: Retries,
    url: Url,
    body: Option<Box<dyn Read>>,
    /// Bytes given so far.
    offset: u64,
    resumable: bool,
    done: bool,
    attempt: u32,
    fault: Option<Fault>,
    progress: Progress,
}

impl<'a> Download<'a> {
    pub fn new(client: &'a Client, retries: Retries, url: Url) -> Self {
        let progress = Progress::begin(&url);
        Download {
            client,
            retries,
            url,
            body: None,
            offset: 0,
            resumable: false,
            done: false,
            attempt: 0,
            fault: None,
            progress,
        }
    }

    /// Whether it is worth to read everything again from the first byte, after a wait that has passed then.
    pub fn restart(&mut self) -> bool {
        let pace = self.fault.as_ref().and_then(|fault| fault.retry);
        let Some(pace) = pace.filter(|_| self.attempt < self.retries.attempts) else {
            return false;
        };
        let fault = self.fault.take();
        self.offset = 0;
        self.wait(pace, &fault.map(|fault| fault.text).unwrap_or_default());
        true
    }

    /// Why reading failed, in words for the user; `None` if it did not.
    pub fn into_fault(self) -> Option<String> {
        Some(self.in_context(&self.fault.as_ref()?.text))
    }

    fn open(&mut self) -> Result<(), Fault> {
        let answer = self.client.get(&self.url, self.offset)?;
        self.progress.expect(answer.length.map(|length| self.offset.saturating_add(length)));
        self.resumable = answer.resumable && answer.offset == self.offset;
        if answer.offset != self.offset {
            return Err(Fault::transient("the server sends the whole again instead of the rest"));
        }
        self.body = Some(answer.body);
        Ok(())
    }

    /// Waits for the next attempt, or gives up.
    fn failed(&mut self, fault: Fault) -> io::Result<()> {
        self.attempt += 1;
        self.body = None;
        match fault.retry {
            Some(pace) if self.attempt < self.retries.attempts && (self.offset == 0 || self.resumable) => {
                self.wait(pace, &fault.text);
                Ok(())
            }
            _ => {
                let error = io::Error::other(fault.text.clone());
                self.fault = Some(fault);
                Err(error)
            }
        }
    }

    fn wait(&self, pace: Pace, text: &str) {
        let mut luck = [0];
        // Without randomness the wait is the shortest.
        let _ = aws_lc_rs::rand::fill(&mut luck);
        let wait = self.retries.wait(pace, self.attempt, luck[0]);
        let from = if self.offset > 0 { format!(" from offset {}", self.offset) } else { String::new() };
        warn(&format!(
            "{}; retrying{from} in {} ms (attempt {}/{})",
            self.in_context(text),
            wait.as_millis(),
            self.attempt,
            self.retries.attempts
        ));
        sleep(wait);
    }

    fn in_context(&self, text: &str) -> String {
        format!("unable to download '{}': {text}", self.url)
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.done && !buffer.is_empty() {
            let Some(body) = &mut self.body else {
                if let Err(fault) = self.open() {
                    self.failed(fault)?;
                }
                continue;
            };
            match body.read(buffer) {
                Ok(0) => self.done = true,
                Ok(n) => {
                    self.offset += n as u64;
                    self.progress.report(self.offset);
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.failed(Fault::of_io(error, &self.client.patience))?,
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit() {
        let most = |pace, attempt| Retries::DEFAULT.wait(pace, attempt, 255);
        assert_eq!(most(Pace::Quick(None), 1), Duration::from_millis(250));
        assert_eq!(most(Pace::Quick(None), 4), Duration::from_secs(2));
        assert_eq!(most(Pace::Slow(None), 2), Duration::from_secs(10));
        assert_eq!(most(Pace::Slow(None), u32::MAX), Duration::from_secs(60));
        let asked = Pace::Slow(Some(Duration::from_secs(30)));
        assert_eq!(Retries::DEFAULT.wait(asked, 1, 0), Duration::from_secs(30));
        assert_eq!(most(asked, 1), Duration::from_secs(35));
        assert_eq!(Retries::DEFAULT.wait(Pace::Quick(Some(Duration::MAX)), 1, 0), RETRY_AFTER_MAX);
    }
}
