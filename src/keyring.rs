//! The file with the keys that seal what Redis holds: read at the start, and again when it has changed. A new file that is wrong
//! changes nothing: the keys that are known stay. Never shows a key, and never writes the file.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    libc::O_NONBLOCK,
    sys::resource::{Resource, setrlimit},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::facts::sealing::{KeyId, Ring, RingError};

/// A change is taken within ten seconds. Looking is a read of a few hundred bytes.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Eight keys and many comments: a larger file is some other one.
const MAX_BYTES: u64 = 64 << 10;

/// Bits of a file's mode.
const WRITABLE_BY_OTHERS: u32 = 0o022;
const READABLE_BY_EVERYBODY: u32 = 0o004;

#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("cannot read {path} (master_key_file): {why}")]
    Unreadable { path: String, why: String },
    #[error("others than its owner may write {path} (master_key_file), mode {mode:o}: chmod go-w {path}")]
    Writable { path: String, mode: u32 },
    #[error("{path} (master_key_file): {error}")]
    Ring { path: String, error: RingError },
    #[error(
        "seal_only locks every endpoint without master_key_file (HERALD_MASTER_KEY_FILE): name the file of the keys"
    )]
    OnlyWithoutKeys,
}

/// The keys as this process has them. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Keyring(Arc<Shared>);

#[derive(Default)]
struct Shared {
    path: Option<PathBuf>,
    is_only: bool,
    ring: RwLock<Arc<Ring>>,
    changes: AtomicU64,
    /// One look at a time: what two find is taken, and told, once.
    looking: Mutex<()>,
}

impl Keyring {
    /// Without a file there is no key: nothing is sealed, and nothing that is sealed opens.
    pub fn open(path: Option<&Path>, is_only: bool) -> Result<Self, KeyringError> {
        let ring = match path {
            Some(path) => read(path)?,
            None if is_only => return Err(KeyringError::OnlyWithoutKeys),
            None => Ring::default(),
        };
        let (path, ring) = (path.map(Path::to_path_buf), RwLock::new(Arc::new(ring)));
        Ok(Self(Arc::new(Shared { path, is_only, ring, changes: AtomicU64::new(0), looking: Mutex::default() })))
    }

    /// The same for a process that serves: with keys in its memory it leaves no picture of that behind, and no other process of its
    /// user may look into it.
    pub fn open_to_serve(path: Option<&Path>, is_only: bool) -> Result<Self, KeyringError> {
        if path.is_some() {
            keep_memory_private();
        }
        Self::open(path, is_only)
    }

    pub fn ring(&self) -> Arc<Ring> {
        self.0.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The file of the keys.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Whether there is one.
    pub fn seals(&self) -> bool {
        self.0.path.is_some()
    }

    /// Whether what is not sealed is not believed.
    pub fn is_only(&self) -> bool {
        self.0.is_only
    }

    /// Grows with each change: who has read with one number knows with another that it may read differently.
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::SeqCst)
    }

    /// Takes the file again whenever it has changed, and at once on SIGHUP, until cancelled.
    pub async fn follow(self, cancel: CancellationToken) {
        let mut hangup = signal(SignalKind::hangup()).ok();
        let mut told = String::new();
        loop {
            let asked = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            let is_asked = tokio::select! {
                () = cancel.cancelled() => return,
                _ = asked => true,
                () = sleep(LOOK_EVERY), if self.seals() => false,
            };
            let wrong = self.look().map_or_else(|error| error.to_string(), |()| String::new());
            if !wrong.is_empty() && (wrong != told || is_asked) {
                error!(error = wrong, "cannot take the new keys: those that are known stay");
            }
            told = wrong;
        }
    }

    /// Takes the file as it is now.
    pub fn look(&self) -> Result<(), KeyringError> {
        let Some(path) = &self.0.path else { return Ok(()) };
        let _looking = self.0.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, new) = (self.ring(), read(path)?);
        if known.ids().eq(new.ids()) {
            return Ok(());
        }
        info!("took the new keys: {}", ids(&new));
        *self.0.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// What cannot be had is told: it is no reason not to deliver.
fn keep_memory_private() {
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        warn!(%error, "a crash may leave the keys in a core dump");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        warn!(%error, "other processes of this user may read the keys from memory");
    }
}

/// Only what may be shown.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("path", &self.0.path).field("ring", &self.ring()).finish()
    }
}

fn ids(ring: &Ring) -> String {
    ring.ids().map(|id: KeyId| id.to_string()).collect::<Vec<_>>().join(", ")
}

/// Whether everybody on this machine may read the file.
pub fn is_open_to_everybody(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.mode() & READABLE_BY_EVERYBODY != 0)
}

/// The keys of a file that is right.
pub fn read(path: &Path) -> Result<Ring, KeyringError> {
    let text = text_of(path)?;
    Ring::parse(&text).map_err(|error| KeyringError::Ring { path: path.display().to_string(), error })
}

/// A key file's text, if it is one that nobody else can have written.
pub fn text_of(path: &Path) -> Result<Zeroizing<String>, KeyringError> {
    let shown = path.display().to_string();
    let unreadable = |why: String| KeyringError::Unreadable { path: shown.clone(), why };
    // Without waiting for whoever may write to what is a pipe.
    let opened = File::options().read(true).custom_flags(O_NONBLOCK).open(path);
    let file = opened.map_err(|error| unreadable(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| unreadable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(unreadable("it is not a file".to_owned()));
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(KeyringError::Writable { path: shown, mode: metadata.mode() & 0o777 });
    }
    // With room for all of it at once: text that moves leaves a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES as usize + 1));
    match file.take(MAX_BYTES + 1).read_to_string(&mut text) {
        Ok(bytes) if bytes as u64 <= MAX_BYTES => Ok(text),
        Ok(_) => Err(unreadable(format!("it is larger than {} KiB", MAX_BYTES >> 10))),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(unreadable("it is not UTF-8".to_owned())),
        Err(error) => Err(unreadable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, fs::Permissions, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::facts::sealing::key_line;

    fn write(path: &Path, keys: &[u8], mode: u32) {
        let lines: String = keys.iter().map(|byte| key_line(&[*byte; 32]).to_string() + "\n").collect();
        fs::write(path, lines).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_others_can_write_is_refused_and_one_that_they_can_read_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        for (mode, is_refused) in [(0o600, false), (0o400, false), (0o644, false), (0o620, true), (0o602, true)] {
            write(&path, &[1], mode);
            let opened = Keyring::open(Some(&path), false);
            assert_eq!(opened.is_err(), is_refused, "{mode:o}");
            assert_eq!(is_open_to_everybody(&path), mode & 0o4 != 0, "{mode:o}");
        }
    }

    #[test]
    fn what_is_no_file_of_keys_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let refused = |path: &Path| Keyring::open(Some(path), false).unwrap_err().to_string();
        assert!(refused(&path).contains("No such file"));
        assert!(refused(folder.path()).contains("not a file"));
        fs::write(&path, "hk1:secret-of-mine\n").unwrap();
        let error = refused(&path);
        assert!(error.contains("line 1") && !error.contains("secret-of-mine"), "{error}");
        fs::write(&path, vec![b'#'; MAX_BYTES as usize + 1]).unwrap();
        assert!(refused(&path).contains("larger than 64 KiB"));
        nix::unistd::mkfifo(&folder.path().join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(refused(&folder.path().join("pipe")).contains("not a file"));
        assert!(matches!(Keyring::open(None, true), Err(KeyringError::OnlyWithoutKeys)));
    }

    #[test]
    fn a_new_file_is_taken_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        write(&path, &[1], 0o600);
        let keyring = Keyring::open(Some(&path), false).unwrap();
        let first = keyring.ring().sealing();
        keyring.look().unwrap();
        assert_eq!(keyring.changes(), 0, "the same keys are no change");
        for break_it in [|path: &Path| fs::write(path, "hk1:").unwrap(), |path: &Path| fs::remove_file(path).unwrap()] {
            break_it(&path);
            assert!(keyring.look().is_err());
            assert_eq!((keyring.ring().sealing(), keyring.changes()), (first, 0));
        }
        write(&path, &[2, 1], 0o600);
        keyring.look().unwrap();
        assert_eq!((keyring.ring().ids().nth(1), keyring.changes()), (first, 1));
    }
}
