//! An authority that nobody here wrote and that says when to renew (acme2certifier, behind gunicorn). It does not look whose hosts are.

use super::pebble::run;
use super::{Process, free_port, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Ari {
    pub port: u16,
    dir: PathBuf,
    pub process: Process,
}

impl Ari {
    /// `renewal`: what it says of when to renew, as lines of its settings.
    pub fn start(dir: &Path, renewal: &str) -> Self {
        let dir = dir.join("ari");
        std::fs::create_dir_all(dir.join("issued")).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"];
        let ca = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"];
        let (ca_key, ca_cert) = (at("ca.key"), at("ca.pem"));
        run("openssl", &[&["req", "-x509", "-subj", "/CN=ari"][..], &key, &ca, &["-keyout", &ca_key, "-out", &ca_cert]].concat());
        let own = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
        let (tls_key, tls_cert) = (at("tls.key"), at("tls.pem"));
        run("openssl", &[&["req", "-x509", "-subj", "/CN=own"][..], &key, &own, &["-keyout", &tls_key, "-out", &tls_cert]].concat());
        let port = free_port();
        settings(&dir, renewal);
        let process = gunicorn(&dir, port);
        let ari = Self { port, dir, process };
        ari.answers();
        ari
    }

    fn answers(&self) {
        let url = format!("https://127.0.0.1:{}/directory", self.port);
        wait_for("the authority", || {
            let got = Command::new("curl").args(["-sS", "--cacert", &self.tls(), &url]).output().unwrap();
            String::from_utf8_lossy(&got.stdout).contains("renewalInfo").then_some(())
        });
    }

    pub fn ends(&mut self) {
        self.process.signal("TERM");
        self.process.ended();
    }

    /// Comes back, and says something else from then on.
    pub fn comes_back(&mut self, renewal: &str) {
        settings(&self.dir, renewal);
        self.process = gunicorn(&self.dir, self.port);
        self.answers();
    }

    fn tls(&self) -> String {
        self.dir.join("tls.pem").display().to_string()
    }

    /// What clients trust.
    pub fn root(&self) -> String {
        self.dir.join("ca.pem").display().to_string()
    }

    /// For a control node.
    pub fn acme(&self) -> String {
        format!(
            "[acme]\ndirectory = \"https://127.0.0.1:{}/directory\"\nca = \"{}\"\nagree_to_terms = true\ncontact = [\"mailto:admin@shop.example\"]\n",
            self.port,
            self.tls()
        )
    }
}

/// Installed by tests/run.
fn gunicorn(dir: &Path, port: u16) -> Process {
    let at = |name: &str| dir.join(name).display().to_string();
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ari");
    let mut command = Command::new(python.join("bin/gunicorn"));
    command.args(["--worker-class", "gthread", "--threads", "4", "--no-control-socket", "-b", &format!("127.0.0.1:{port}")]);
    command.args(["--certfile", &at("tls.pem"), "--keyfile", &at("tls.key"), "acme2certifier.share.acme2certifier_wsgi:application"]);
    command.env("PYTHONPATH", &python).env("ACME_SRV_CONFIGFILE", at("settings")).env("ACME2CERTIFIER_I_KNOW_THE_RISK", "1");
    command.current_dir(dir);
    Process::start(&mut command, &dir.join("log"))
}

fn settings(dir: &Path, renewal: &str) {
    let d = dir.display();
    let text = format!(
        "[CAhandler]\nhandler_module: acme2certifier.cahandlers.openssl_ca_handler\nissuing_ca_key: {d}/ca.key\nissuing_ca_cert: {d}/ca.pem\n\
         issuing_ca_crl: {d}/crl.pem\ncert_validity_days: 30\ncert_save_path: {d}/issued\n[DBhandler]\nhandler: wsgi\ndbfile: {d}/db\n\
         [Challenge]\nchallenge_validation_disable: True\n[Renewalinfo]\nretry_after_timeout: 60\n{renewal}\n"
    );
    std::fs::write(dir.join("settings"), text).unwrap();
}
