//! Events at the StatefulSets, for `kubectl describe`.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::timeout;

use crate::pools::Spec;

/// How long one may take; it only tells.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of an event's text that the API server takes.
const NOTE_LEN_MAX: usize = 1_000;

pub struct Events {
    recorder: Recorder,
    namespace: String,
}

impl Events {
    pub fn new(client: Client, namespace: String) -> Self {
        let reporter = Reporter { controller: "shoal-k8s".to_owned(), instance: None };
        Events { recorder: Recorder::new(client, reporter), namespace }
    }

    pub async fn tell(&self, spec: &Spec, is_warning: bool, reason: &str, text: &str) {
        let mut note = text.to_owned();
        note.truncate(note.floor_char_boundary(NOTE_LEN_MAX));
        let event = Event {
            type_: if is_warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note),
            action: "Size".to_owned(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some("apps/v1".to_owned()),
            kind: Some("StatefulSet".to_owned()),
            name: Some(spec.name.clone()),
            namespace: Some(self.namespace.clone()),
            uid: Some(spec.uid.clone()),
            ..ObjectReference::default()
        };
        match timeout(PATIENCE, self.recorder.publish(&event, &about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cannot tell an event"),
            Err(_) => tracing::debug!("cannot tell an event in time"),
        }
    }
}
