//! Files that become shorter while they are mapped. The system has no page to give then and sends a signal; which file it was about is
//! told by the address, so that the program can end with an error that names it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};

/// Maps that can be told apart at once: far more than the files of any checkpoint. A fault in another one is reported without its name.
const MAPS: usize = 4096;

/// Where a map lies. Free while `path` is null.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    path: AtomicPtr<Box<Path>>,
}

static SLOTS: [Slot; MAPS] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), path: AtomicPtr::new(std::ptr::null_mut()) } }; MAPS];

/// Keeps a map known as long as it exists.
#[derive(Debug)]
pub(super) struct Known(Option<usize>);

impl Known {
    /// Makes the map at `bytes` of the file at `path` known.
    pub(super) fn new(bytes: &[u8], path: &Path) -> Self {
        let start = bytes.as_ptr().addr();
        let own = Box::into_raw(Box::new(Box::<Path>::from(path)));
        let free = |slot: &Slot| slot.path.compare_exchange(std::ptr::null_mut(), own, SeqCst, SeqCst).is_ok();
        let Some(i) = SLOTS.iter().position(free) else {
            // SAFETY: made by `Box::into_raw` above, and in no slot.
            drop(unsafe { Box::from_raw(own) });
            return Known(None);
        };
        SLOTS[i].start.store(start, SeqCst);
        SLOTS[i].end.store(start + bytes.len(), SeqCst);
        Known(Some(i))
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let Some(slot) = self.0.map(|i| &SLOTS[i]) else { return };
        slot.end.store(0, SeqCst);
        slot.start.store(0, SeqCst);
        let path = slot.path.swap(std::ptr::null_mut(), SeqCst);
        if !path.is_null() {
            // SAFETY: made by `Box::into_raw` in `new` and taken out of the slot here, once. Nobody reads it any more: a fault in a map
            // is looked up by the thread that reads the map, which therefore still exists.
            drop(unsafe { Box::from_raw(path) });
        }
    }
}

/// From now on, if a mapped file turns out to have become shorter, `action` is called with its path (without one, if it is not known)
/// and then the program ends, at once, with the exit code that it gives. Errors: the system refuses to watch.
///
/// The action runs in the thread that was reading the map, which holds no lock at that moment, so that it may print. Of several threads
/// that come upon lost pages, the first alone acts.
#[cfg(unix)]
pub fn on_lost_pages(action: impl Fn(Option<&Path>) -> u8 + Send + Sync + 'static) -> std::io::Result<()> {
    static ENDING: AtomicBool = AtomicBool::new(false);
    let handler = move |info: &libc::siginfo_t| {
        // Sent by another process, it says nothing about maps.
        if info.si_code <= 0 {
            return;
        }
        if ENDING.swap(true, SeqCst) {
            loop {
                // SAFETY: waits for a signal; the first thread is about to end the program.
                unsafe { libc::pause() };
            }
        }
        // SAFETY: the signal is SIGBUS, whose information has an address.
        let address = unsafe { info.si_addr() }.addr();
        let hit = |s: &&Slot| (s.start.load(SeqCst)..s.end.load(SeqCst)).contains(&address);
        let path = SLOTS.iter().find(hit).map(|s| s.path.load(SeqCst)).filter(|p| !p.is_null());
        // SAFETY: the slot belongs to the map that this thread is reading, and is freed only with it.
        let code = action(path.map(|p| unsafe { &**p }));
        // SAFETY: ends the program without waiting for threads or running what is registered for its end, which could read the map again.
        unsafe { libc::_exit(code.into()) };
    };
    // SAFETY: the handler runs where a map is read, not at an arbitrary point: whoever copies bytes out of a map holds no lock of the
    // allocator or of standard streams. It never returns, so nothing goes on with bytes that are not there.
    unsafe { signal_hook_registry::register_sigaction(libc::SIGBUS, handler) }.map(|_| ())
}

/// Elsewhere the system ends the program.
#[cfg(not(unix))]
pub fn on_lost_pages(_action: impl Fn(Option<&Path>) -> u8 + Send + Sync + 'static) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_at(address: usize) -> Option<String> {
        let hit = |s: &&Slot| (s.start.load(SeqCst)..s.end.load(SeqCst)).contains(&address);
        let path = SLOTS.iter().find(hit)?.path.load(SeqCst);
        // SAFETY: the tests keep the map known meanwhile.
        Some(unsafe { &*path }.display().to_string())
    }

    #[test]
    fn maps_are_known_by_their_addresses_as_long_as_they_exist() {
        let (a, b) = (vec![0u8; 64], vec![0u8; 64]);
        let known = [Known::new(&a, Path::new("a")), Known::new(&b, Path::new("b"))];
        assert_eq!(path_at(a.as_ptr().addr()).as_deref(), Some("a"));
        assert_eq!(path_at(b.as_ptr().addr() + 63).as_deref(), Some("b"));
        drop(known);
        assert_eq!(path_at(a.as_ptr().addr()), None);
    }
}
