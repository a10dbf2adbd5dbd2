//! How fast bytes pass between a guest and the internet.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{Guest, Lab, SERVER, at};

/// Megabits per second towards the guest: of so many bytes, after the first ones.
pub fn down(lab: &Lab, guest: &Guest, first: usize, bytes: usize) -> f64 {
    let (near, far) = pair(lab, guest);
    mbit(first, bytes, far, near)
}

/// The same from the guest.
pub fn up(lab: &Lab, guest: &Guest, first: usize, bytes: usize) -> f64 {
    let (near, far) = pair(lab, guest);
    mbit(first, bytes, near, far)
}

fn pair(lab: &Lab, guest: &Guest) -> (TcpStream, TcpStream) {
    let listener = lab
        .internet
        .run(|| TcpListener::bind(at(SERVER, 0)).unwrap())
        .unwrap();
    let to = listener.local_addr().unwrap();
    let near = guest.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)).unwrap());
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

/// A bucket's first filling is not the rate.
fn mbit(first: usize, bytes: usize, mut give: TcpStream, mut take: TcpStream) -> f64 {
    let writer = std::thread::spawn(move || {
        let chunk = vec![0; 64 << 10];
        while give.write_all(&chunk).is_ok() {}
    });
    let mut buffer = vec![0; 64 << 10];
    let mut pass = |mut left: usize| {
        while left > 0 {
            left -= take.read(&mut buffer).unwrap().min(left);
        }
    };
    pass(first);
    let start = Instant::now();
    pass(bytes);
    let seconds = start.elapsed().as_secs_f64();
    drop(take);
    writer.join().unwrap();
    bytes as f64 * 8.0 / seconds / 1e6
}
