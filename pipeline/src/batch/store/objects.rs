//! A store on S3 and what speaks its protocol. Credentials and endpoint come from AWS's usual environment variables.

use bitsmith_formats::{Error, ErrorKind, Result};
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Name;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tokio::runtime::{Builder, Runtime};

/// Files up to this size are sent at once, larger ones in parts of at least this size.
const PART: usize = 16 << 20;
/// S3 takes no more parts of a file than 10,000.
const MOST_PARTS: u64 = 9_000;
/// Parts of a file that are sent at the same time.
const TOGETHER: usize = 4;

/// A bucket, or a part of it.
pub struct Objects {
    bucket: AmazonS3,
    prefix: Name,
    uri: String,
    runtime: Runtime,
}

impl Objects {
    /// Opens `s3://bucket/prefix`.
    pub fn open(uri: &str) -> Result<Objects> {
        let bad = |e: object_store::Error| Error::usage(format!("--store {uri}: {e}"));
        // The only cryptography in the program; a second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (bucket, prefix) = uri.trim_start_matches("s3://").split_once('/').unwrap_or((uri.trim_start_matches("s3://"), ""));
        if bucket.is_empty() {
            return Err(Error::usage(format!("--store {uri}: no bucket is named")).hint("s3://bucket/prefix"));
        }
        let prefix = Name::parse(prefix.trim_matches('/')).map_err(|e| bad(e.into()))?;
        let bucket = AmazonS3Builder::from_env().with_bucket_name(bucket).build().map_err(bad)?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|e| Error::failed(e.to_string()))?;
        Ok(Objects { bucket, prefix, uri: uri.to_string(), runtime })
    }

    fn name(&self, name: &str) -> Name {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// An error with its place.
    fn failed(&self, name: &str, e: object_store::Error) -> Error {
        use object_store::Error as E;
        let (kind, hint) = match &e {
            E::NotFound { .. } => (ErrorKind::Missing, "check bucket and prefix"),
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
                (ErrorKind::NotAuthorised, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role of this machine")
            }
            _ => (ErrorKind::Transient, "run it again: what is done is not repeated"),
        };
        Error::new(kind, e.to_string()).file(PathBuf::from(format!("{}/{name}", self.uri))).hint(hint)
    }

    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let at = self.name(name);
        let read = async { self.bucket.get(&at).await?.bytes().await };
        match self.runtime.block_on(read) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed(name, e)),
        }
    }

    pub fn put(&self, name: &str, document: &[u8]) -> Result<()> {
        let (at, payload) = (self.name(name), PutPayload::from(document.to_vec()));
        self.runtime.block_on(self.bucket.put(&at, payload)).map(|_| ()).map_err(|e| self.failed(name, e))
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        match self.runtime.block_on(self.bucket.delete(&self.name(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed(name, e)),
        }
    }

    pub fn keys(&self, folder: &str) -> Result<BTreeSet<String>> {
        let at = self.name(folder);
        let list = self.bucket.list(Some(&at)).map_ok(|meta| meta.location).try_collect::<Vec<Name>>();
        let names = self.runtime.block_on(list).map_err(|e| self.failed(folder, e))?;
        let key = |n: &Name| Some(n.filename()?.strip_suffix(".json")?.to_string());
        Ok(names.iter().filter_map(key).collect())
    }

    pub fn bytes(&self, name: &str) -> Result<Option<u64>> {
        match self.runtime.block_on(self.bucket.head(&self.name(name))) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed(name, e)),
        }
    }

    /// Uploads a file, unless it is there. It appears when all of its parts are sent.
    pub fn keep(&self, file: &Path, name: &str, sha256: &str) -> Result<()> {
        let mut source = File::open(file).map_err(|e| Error::read(file, e))?;
        let bytes = source.metadata().map_err(|e| Error::read(file, e))?.len();
        if self.bytes(name)? == Some(bytes) {
            return Ok(());
        }
        let at = self.name(name);
        let part = PART.max(bytes.div_ceil(MOST_PARTS) as usize);
        let mut buffer = vec![0; part.min(bytes as usize)];
        let mut hasher = Sha256::new();
        let mut next = |hasher: &mut Sha256| -> Result<PutPayload> {
            let mut filled = 0;
            while filled < buffer.len() {
                match source.read(&mut buffer[filled..]).map_err(|e| Error::read(file, e))? {
                    0 => break,
                    n => filled += n,
                }
            }
            hasher.update(&buffer[..filled]);
            Ok(PutPayload::from(buffer[..filled].to_vec()))
        };
        let changed = || Error::corrupt("the file changed while it was sent").file(file);
        let is_same = |hasher: Sha256| hasher.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>() == sha256;
        if bytes <= PART as u64 {
            let payload = next(&mut hasher)?;
            if !is_same(hasher) {
                return Err(changed());
            }
            return self.runtime.block_on(self.bucket.put(&at, payload)).map(|_| ()).map_err(|e| self.failed(name, e));
        }
        self.runtime.block_on(async {
            let upload = self.bucket.put_multipart(&at).await.map_err(|e| self.failed(name, e))?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, part);
            for _ in 0..bytes.div_ceil(part as u64) {
                upload.wait_for_capacity(TOGETHER).await.map_err(|e| self.failed(name, e))?;
                for chunk in next(&mut hasher)? {
                    upload.put(chunk);
                }
            }
            if !is_same(hasher) {
                // What was sent is of no use; if this fails, the bucket's own rules clean it up.
                let _ = upload.abort().await;
                return Err(changed());
            }
            upload.finish().await.map(|_| ()).map_err(|e| self.failed(name, e))
        })
    }

    /// Downloads a file, which appears when it is whole and has its hash.
    pub fn fetch(&self, name: &str, sha256: &str, to: &Path) -> Result<()> {
        let at = self.name(name);
        let failed = |e| Error::write(to, e);
        let dir = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(super::folder::PARTIAL).tempfile_in(dir).map_err(failed)?;
        let mut hasher = Sha256::new();
        self.runtime.block_on(async {
            let mut stream = self.bucket.get(&at).await.map_err(|e| self.failed(name, e))?.into_stream();
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|e| self.failed(name, e))?;
                hasher.update(&chunk);
                file.write_all(&chunk).map_err(failed)?;
            }
            Ok::<_, Error>(())
        })?;
        let found: String = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if found != sha256 {
            return Err(Error::corrupt("the store's file is not what its name says").file(format!("{}/{name}", self.uri)));
        }
        file.as_file().sync_all().map_err(failed)?;
        file.persist(to).map_err(|e| failed(e.error))?;
        Ok(())
    }
}
