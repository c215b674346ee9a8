//! Programs of other projects, through two tiers: their downloads and uploads are compared by hash. They are many and large, so
//! `tests/long` installs them and runs this file; grpcio is in `streams.rs`.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::{Dev, Nginx, Numbers, chromium, text};

/// A folder and an nginx that serves it.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("www")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// `www`, cached for a minute.
    fn served(&self) -> (Nginx, Dev) {
        let more = "add_header Cache-Control max-age=60; try_files $uri $uri/index.json $uri/index.html =404;";
        let nginx = Nginx::start(&self.path("nginx"), &self.path("www"), more);
        let dev = self.through(&nginx.url());
        (nginx, dev)
    }

    fn through(&self, origin: &str) -> Dev {
        Dev::start(&self.folder("dev"), &["--origin", origin, "--shields", "1"])
    }
}

/// Bytes that nothing can compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    std::iter::repeat_with(|| numbers.below(u64::MAX).to_le_bytes()).flatten().take(length).collect()
}

fn http(dev: &Dev) -> String {
    format!("http://{}", dev.http[0])
}

/// Runs a shell script with `set -e` and returns its output.
fn sh(dir: &Path, script: &str, environment: &[(&str, &str)]) -> String {
    let out =
        Command::new("sh").arg("-euc").arg(script).current_dir(dir).envs(environment.iter().copied()).env("HOME", dir).output().unwrap();
    assert!(out.status.success(), "{script}\n{}\n{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout).trim().to_owned()
}

/// An origin of `program_origins.py`, or another program that prints its port first.
struct Origin(Child, String);

impl Origin {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/program_origins.py")).args(arguments).env("PYTHONPATH", python());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self(child, format!("http://127.0.0.1:{}", port.trim()))
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder with the Python packages that `tests/long` installs.
fn python() -> String {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/python-long").to_owned()
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn git_clones_fetches_and_pushes() {
    let files = Files::new();
    let root = files.folder("root");
    let origin = Origin::start(&["git", root.to_str().unwrap()]);
    let dev = files.through(&origin.1);
    files.write("large", noise(1, 12 << 20));
    let url = http(&dev);
    let script = format!(
        "export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t
         git init -q --bare root/r.git; git -C root/r.git config http.receivepack true
         git clone -q {url}/r.git a; cp large a/; git -C a add .; git -C a commit -qm one; git -C a push -q origin HEAD:main
         git clone -q -b main {url}/r.git b; cmp large b/large; git -C b fsck --full
         echo two > a/two; git -C a add .; git -C a commit -qm two; git -C a push -q origin HEAD:main
         git -C b pull -q origin main; cmp a/two b/two
         git clone -q --depth 1 -b main {url}/r.git c; cmp large c/large
         test $(git -C a rev-parse HEAD) = $(git -C c rev-parse HEAD); git -C root/r.git fsck --full"
    );
    sh(files.dir.path(), &script, &[]);
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn npm_installs() {
    let files = Files::new();
    let (_nginx, dev) = files.served();
    files.write("pack/package.json", r#"{"name":"tiny","version":"1.0.0","main":"index.js"}"#);
    files.write("pack/index.js", "module.exports = 'tiny'");
    files.write("pack/data", noise(2, 3 << 20));
    files.write("project/package.json", r#"{"name":"p","version":"1.0.0","dependencies":{"tiny":"1.0.0"}}"#);
    sh(files.dir.path(), "npm pack --silent ./pack; mkdir -p www/tiny/-; mv tiny-1.0.0.tgz www/tiny/-/", &[]);
    let digest = sh(files.dir.path(), "openssl dgst -sha512 -binary www/tiny/-/tiny-1.0.0.tgz | base64 -w0", &[]);
    let url = http(&dev);
    let packument = format!(
        r#"{{"name":"tiny","dist-tags":{{"latest":"1.0.0"}},"versions":{{"1.0.0":{{"name":"tiny","version":"1.0.0",
           "dist":{{"tarball":"{url}/tiny/-/tiny-1.0.0.tgz","integrity":"sha512-{digest}"}}}}}}}}"#
    );
    files.write("www/tiny/index.json", packument);
    for n in 0..2 {
        let script = format!(
            "cd project; rm -rf node_modules package-lock.json; npm install --silent --no-audit --no-fund --cache ../cache{n} --registry {url}/; cmp node_modules/tiny/data ../pack/data"
        );
        sh(files.dir.path(), &script, &[]);
    }
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn pip_installs() {
    let files = Files::new();
    let (_nginx, dev) = files.served();
    files.write(
        "pack/pyproject.toml",
        "[project]\nname = \"tiny\"\nversion = \"1.0\"\n[build-system]\nrequires = []\nbuild-backend = \"b\"\nbackend-path = [\".\"]\n",
    );
    files.write("data", noise(3, 3 << 20));
    let wheel = "import zipfile, sys
z = zipfile.ZipFile('www/tiny-1.0-py3-none-any.whl', 'w')
z.write('data', 'tiny/data'); z.writestr('tiny/__init__.py', '')
z.writestr('tiny-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n')
z.writestr('tiny-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
z.writestr('tiny-1.0.dist-info/RECORD', '')";
    files.write("wheel.py", wheel);
    let digest = sh(files.dir.path(), "python3 wheel.py; sha256sum www/*.whl | cut -d' ' -f1", &[]);
    files.write(
        "www/simple/tiny/index.html",
        format!("<a href=\"/tiny-1.0-py3-none-any.whl#sha256={digest}\">tiny-1.0-py3-none-any.whl</a>"),
    );
    let url = http(&dev);
    for n in 0..2 {
        let script = format!(
            "python3 -m pip install -q --no-cache-dir --disable-pip-version-check --root-user-action ignore --trusted-host 127.0.0.1 --index-url {url}/simple --target got{n} tiny; cmp data got{n}/tiny/data"
        );
        sh(files.dir.path(), &script, &[]);
    }
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn cargo_fetches() {
    let files = Files::new();
    let (_nginx, dev) = files.served();
    let url = http(&dev);
    files.write("tiny-0.1.0/Cargo.toml", "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2021\"\n");
    files.write("tiny-0.1.0/src/lib.rs", "");
    files.write("tiny-0.1.0/data", noise(4, 3 << 20));
    let digest = sh(
        files.dir.path(),
        "mkdir www/crates; tar czf www/crates/tiny-0.1.0.crate tiny-0.1.0; sha256sum www/crates/* | cut -d' ' -f1",
        &[],
    );
    files.write("www/index/config.json", format!("{{\"dl\":\"{url}/crates/{{crate}}-{{version}}.crate\"}}"));
    files.write(
        "www/index/ti/ny/tiny",
        format!("{{\"name\":\"tiny\",\"vers\":\"0.1.0\",\"deps\":[],\"cksum\":\"{digest}\",\"features\":{{}},\"yanked\":false}}\n"),
    );
    files.write("project/Cargo.toml", "[package]\nname = \"p\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\ntiny = { version = \"0.1\", registry = \"edge\" }\n");
    files.write("project/src/lib.rs", "");
    files.write("project/.cargo/config.toml", format!("[registries.edge]\nindex = \"sparse+{url}/index/\"\n"));
    let cargo = env!("CARGO");
    for n in 0..2 {
        let home = files.path(&format!("home{n}"));
        let script =
            format!("cd project; rm -f Cargo.lock; {cargo} fetch -q; cmp $CARGO_HOME/registry/src/*/tiny-0.1.0/data ../tiny-0.1.0/data");
        sh(files.dir.path(), &script, &[("CARGO_HOME", home.to_str().unwrap()), ("CARGO_NET_RETRY", "0")]);
    }
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn apt_downloads() {
    let files = Files::new();
    let (_nginx, dev) = files.served();
    let url = http(&dev);
    files.write("tiny/DEBIAN/control", "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: T <t@t.test>\nDescription: tiny\n");
    files.write("tiny/usr/share/tiny/data", noise(5, 3 << 20));
    let make = "dpkg-deb --build tiny www/tiny_1.0_all.deb >/dev/null
        { cat tiny/DEBIAN/control; echo Filename: ./tiny_1.0_all.deb; echo Size: $(stat -c %s www/tiny_1.0_all.deb); echo SHA256: $(sha256sum www/tiny_1.0_all.deb | cut -d' ' -f1); echo; } > www/Packages
        { echo Date: $(date -Ru | sed s/+0000/UTC/); echo SHA256:; echo \" $(sha256sum www/Packages | cut -d' ' -f1) $(stat -c %s www/Packages) Packages\"; } > www/Release";
    sh(files.dir.path(), make, &[]);
    let script = format!(
        "echo 'deb [trusted=yes] {url}/ ./' > list; mkdir -p state/lists/partial cache/archives/partial got parts
         options=\"-q -o Dir::State=$PWD/state -o Dir::State::status=/dev/null -o Dir::Cache=$PWD/cache -o Dir::Etc::SourceList=$PWD/list \
          -o Dir::Etc::SourceParts=$PWD/parts -o Dir::Etc::Parts=$PWD/parts -o Dir::Etc::main=/dev/null -o Acquire::Retries=0 -o APT::Sandbox::User=root\"
         cd got; for n in 1 2; do rm -rf ../state/lists/*; mkdir -p ../state/lists/partial; rm -f *.deb
         apt-get $options update; apt-get $options download tiny; cmp tiny_1.0_all.deb ../www/tiny_1.0_all.deb; done"
    );
    sh(files.dir.path(), &script, &[("APT_CONFIG", "/dev/null")]);
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn skopeo_pushes_and_pulls_images() {
    let files = Files::new();
    let port = support::free_port();
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        files.path("registry").display()
    );
    let config = files.write("registry.yml", config);
    let registry = support::Process::start(Command::new("docker-registry").arg("serve").arg(config), &files.path("registry.log"));
    support::wait_for("the registry", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let dev = files.through(&format!("http://127.0.0.1:{port}"));
    files.write("layer/data", noise(6, 24 << 20));
    let image = "import gzip, hashlib, json, os, subprocess
os.makedirs('image/blobs/sha256')
def blob(data, kind):
    name = hashlib.sha256(data).hexdigest()
    open('image/blobs/sha256/' + name, 'wb').write(data)
    return {'mediaType': kind, 'digest': 'sha256:' + name, 'size': len(data)}
oci = 'application/vnd.oci.image.'
tar = subprocess.check_output(['tar', 'c', '-C', 'layer', '.'])
layer = blob(gzip.compress(tar, 1), oci + 'layer.v1.tar+gzip')
config = blob(json.dumps({'architecture': 'amd64', 'os': 'linux', 'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + hashlib.sha256(tar).hexdigest()]}}).encode(), oci + 'config.v1+json')
manifest = blob(json.dumps({'schemaVersion': 2, 'mediaType': oci + 'manifest.v1+json', 'config': config, 'layers': [layer]}).encode(), oci + 'manifest.v1+json')
open('image/index.json', 'w').write(json.dumps({'schemaVersion': 2, 'manifests': [manifest]}))
open('image/oci-layout', 'w').write('{\"imageLayoutVersion\": \"1.0.0\"}')";
    files.write("image.py", image);
    let at = dev.http[0];
    let script = format!(
        "python3 image.py; options=\"--insecure-policy\"
         skopeo $options copy -q --dest-tls-verify=false oci:image docker://{at}/team/image:1
         for n in 1 2; do skopeo $options copy -q --src-tls-verify=false docker://{at}/team/image:1 dir:back$n
         for blob in image/blobs/sha256/*; do name=$(basename $blob); test -e back$n/$name && cmp $blob back$n/$name || cmp $blob back$n/manifest.json; done; done
         skopeo $options inspect --tls-verify=false docker://{at}/team/image:1 >/dev/null; skopeo list-tags --tls-verify=false docker://{at}/team/image >/dev/null"
    );
    sh(files.dir.path(), &script, &[]);
    drop(registry);
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn rclone_copies_both_ways() {
    let files = Files::new();
    let port = support::free_port();
    let root = files.folder("root");
    let mut serve = Command::new("rclone");
    serve.args(["serve", "webdav", root.to_str().unwrap(), "--addr", &format!("127.0.0.1:{port}"), "--config", "/dev/null"]);
    let server = support::Process::start(&mut serve, &files.path("rclone.log"));
    support::wait_for("rclone", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let dev = files.through(&format!("http://127.0.0.1:{port}"));
    for n in 0..20 {
        files.write(&format!("tree/{n}/file {n}"), noise(n, usize::try_from(n).unwrap() * 300_000));
    }
    files.write("tree/empty", "");
    let script = format!(
        "r=\"rclone --config /dev/null --webdav-url {} --retries 1 --low-level-retries 1 -q\"
         $r copy tree :webdav:in; diff -r tree root/in; $r copy :webdav:in back; diff -r tree back; $r check --download tree :webdav:in
         $r moveto ':webdav:in/3/file 3' ':webdav:in/moved'; cmp 'tree/3/file 3' root/in/moved; $r delete :webdav:in/5; test ! -e 'root/in/5/file 5'",
        http(&dev)
    );
    sh(files.dir.path(), &script, &[]);
    drop(server);
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn aria2_and_curl_download_in_parts() {
    let files = Files::new();
    let (_nginx, dev) = files.served();
    files.write("www/large.bin", noise(7, 40 << 20));
    let (url, ca) = (http(&dev), dev.ca.display());
    let https = dev.https[0].trim_end_matches('/');
    let script = format!(
        "for n in 1 2; do aria2c -q -x 8 -s 8 -k 1M --file-allocation=none -o got$n {url}/large.bin; cmp got$n www/large.bin; done
         aria2c -q -x 8 -s 8 -k 1M --file-allocation=none --ca-certificate={ca} -o got3 {https}/large.bin; cmp got3 www/large.bin
         curl -sS -o part --max-filesize 99999999 -r 0-9999999 {url}/large.bin; curl -sS -C - -o part {url}/large.bin; cmp part www/large.bin
         curl -sS --http2 --cacert {ca} -o two {https}/large.bin; cmp two www/large.bin"
    );
    sh(files.dir.path(), &script, &[]);
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn ffmpeg_plays_and_seeks() {
    let files = Files::new();
    let (_nginx, dev) = files.served();
    let make = "ffmpeg -loglevel error -f lavfi -i testsrc2=duration=40:size=1280x720:rate=25 -f lavfi -i sine=duration=40 -c:v libx264 -preset ultrafast -qp 12 -pix_fmt yuv420p -c:a aac www/movie.mp4
        ffmpeg -loglevel error -i www/movie.mp4 -c copy -f hls -hls_time 4 -hls_list_size 0 www/list.m3u8; ls -l www/movie.mp4 | cut -d' ' -f5";
    let size: u64 = sh(files.dir.path(), make, &[]).parse().unwrap();
    assert!(size > 9 << 20, "it is to be larger than what is kept in one: {size}");
    let url = http(&dev);
    // A seek goes first: nothing is here then.
    for (options, name) in
        [("-ss 30 -t 2", "movie.mp4"), ("-ss 5 -t 1", "movie.mp4"), ("", "movie.mp4"), ("-ss 12 -t 2", "list.m3u8"), ("", "list.m3u8")]
    {
        let of = |at: &str| sh(files.dir.path(), &format!("ffmpeg -loglevel error {options} -i {at} -c copy -f md5 -"), &[]);
        assert_eq!(of(&format!("{url}/{name}")), of(&format!("www/{name}")), "{options} {name}");
    }
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn boto3_signs_what_arrives() {
    let files = Files::new();
    let origin = Origin::start(&["s3"]);
    let dev = files.through(&origin.1);
    let large = files.write("large", noise(8, 17 << 20));
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/s3_client.py");
    let script = format!("python3 {client} {} {} AKIDEXAMPLE a-secret-of-the-test", http(&dev), large.display());
    assert_eq!(sh(files.dir.path(), &script, &[("PYTHONPATH", &python())]), "right");
}

#[test]
#[ignore = "needs programs that tests/long installs"]
fn chromium_fetches_and_uploads() {
    let files = Files::new();
    let www = files.path("www");
    let origin = Origin::start(&["echo", www.to_str().unwrap()]);
    let dev = files.through(&origin.1);
    let page = "<body>waiting<script>
        const hex = async data => [...new Uint8Array(await crypto.subtle.digest('SHA-256', data))].map(b => b.toString(16).padStart(2, '0')).join('');
        (async () => {
          const whole = await (await fetch('/large.bin')).arrayBuffer();
          const part = await (await fetch('/large.bin', {headers: {Range: 'bytes=1000000-1999999'}})).arrayBuffer();
          const sent = await (await fetch('/upload', {method: 'POST', body: whole})).text();
          const [a, b] = [await hex(whole), await hex(part)];
          document.body.textContent = `whole=${a} part=${b} sent=${sent}`;
        })().catch(e => { document.body.textContent = 'failed: ' + e; });
        </script>";
    files.write("www/page.html", page);
    let large = noise(9, 5 << 20);
    files.write("www/large.bin", &large);
    files.write("part", &large[1_000_000..2_000_000]);
    let digest = |name: &str| sh(files.dir.path(), &format!("sha256sum {name} | cut -d' ' -f1"), &[]);
    let address = support::loopback(dev.https[0].trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap());
    let shown = chromium(files.dir.path(), address, "https://localhost/page.html", &["--disable-quic"]);
    let (whole, part) = (digest("www/large.bin"), digest("part"));
    assert!(shown.contains(&format!("whole={whole} part={part} sent={whole}")), "{shown}");
}
