//! A way to a server that can be broken: connections to it end as if the network had failed.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

/// Leads to one port of this machine until it is dropped.
pub struct Relay {
    port: u16,
    carried: Arc<Carried>,
}

#[derive(Default)]
struct Carried {
    /// Ends at the server.
    ends: Mutex<Vec<TcpStream>>,
    is_cut: AtomicBool,
}

impl Relay {
    pub fn to(port: u16) -> io::Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let relay = Relay { port: listener.local_addr()?.port(), carried: Arc::default() };
        let carried = relay.carried.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A server that is gone has no connections.
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
                if carry(&client, &server, &carried).is_ok() {
                    carried.ends.lock().unwrap_or_else(PoisonError::into_inner).push(server);
                }
            }
        });
        Ok(relay)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Resets all connections at the server's end, for good.
    pub fn cut(&self) {
        self.carried.is_cut.store(true, Ordering::Release);
        for end in self.carried.ends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // The reset goes out when the last descriptor is closed, which the threads do that are woken here.
            let _ = set_socket_linger(&end, Some(Duration::ZERO));
            let _ = end.shutdown(Shutdown::Read);
        }
    }
}

fn carry(client: &TcpStream, server: &TcpStream, carried: &Arc<Carried>) -> io::Result<()> {
    let (mut up, mut down) = ((client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?));
    let carried = carried.clone();
    thread::spawn(move || {
        let _ = io::copy(&mut up.0, &mut up.1);
        // What was cut says no goodbye.
        if !carried.is_cut.load(Ordering::Acquire) {
            let _ = up.1.shutdown(Shutdown::Write);
        }
    });
    thread::spawn(move || {
        let _ = io::copy(&mut down.0, &mut down.1);
        let _ = down.1.shutdown(Shutdown::Both);
    });
    Ok(())
}
