//! `dog volume attach`: what to tell QEMU or libvirt.

use super::{Context, Failure, foreign, name::Name, print};
use serde::Serialize;
use std::{path::Path, process};

/// The first libvirt, major and minor, that hands `<reconnect>` of an NBD disk on to QEMU. Older
/// ones drop it or refuse the XML.
const LIBVIRT_RECONNECTS: (u32, u32) = (9, 1);

/// Everything that describes one disk of a virtual machine.
struct Disk<'a> {
    /// The volume's or snapshot's name.
    name: &'a str,
    /// QEMU's name for it, which may not hold all that a name may.
    node: String,
    /// Whether it is a snapshot.
    read_only: bool,
    socket: &'a Path,
    reconnect_delay_s: u32,
    target: &'a str,
}

/// For programs.
#[derive(Serialize)]
struct Report {
    uri: String,
    read_only: bool,
    qemu_arguments: Vec<String>,
    libvirt_xml: String,
    libvirt_command_line_xml: String,
}

/// Runs the command.
pub fn run(
    context: &Context,
    name: &Name,
    reconnect_delay_s: u32,
    target: &str,
) -> Result<(), Failure> {
    if target.is_empty() || !target.bytes().all(|c| c.is_ascii_lowercase()) {
        return Err(Failure::usage(format!(
            "`{target}` is no name of a disk in a guest; use vda, vdb and so on"
        )));
    }
    let (node, note) = match name {
        Name::Volume(name) => {
            let volume = context.volume(name)?;
            let note = volume.attachment.map(|attachment| {
                format!(
                    "note: {} has the volume now; another client is refused until it lets go",
                    attachment.holder
                )
            });
            (format!("sheep-{}", volume.volume), note)
        }
        Name::Snapshot(name) => (format!("sheep-layer-{}", context.snapshot(name)?.layer), None),
    };
    let socket = std::path::absolute(&context.nbd_socket).map_err(|error| {
        Failure::failed(format!("the current directory is gone: {error}; change to another"))
    })?;
    let read_only = matches!(name, Name::Snapshot(_));
    let name = name.to_string();
    let disk = Disk { name: &name, node, read_only, socket: &socket, reconnect_delay_s, target };
    // The socket is a local one, so it is the local libvirt that will read the XML.
    let libvirt = local_libvirt();
    let reconnects = libvirt.is_none_or(|version| version >= LIBVIRT_RECONNECTS);
    if context.json {
        return print::json(&Report {
            uri: disk.uri(),
            read_only,
            qemu_arguments: disk.qemu_arguments(),
            libvirt_xml: disk.libvirt_xml(reconnects),
            libvirt_command_line_xml: disk.libvirt_command_line_xml(),
        });
    }
    let mut page = String::from("# QEMU arguments\n");
    for pair in disk.qemu_arguments().chunks(2) {
        let words: Vec<String> = pair.iter().map(|word| shell_quote(word)).collect();
        page += &format!("{} \\\n", words.join(" "));
    }
    page.truncate(page.len() - " \\\n".len());
    page += "\n\n# libvirt: a disk among the devices of a domain\n";
    page += &disk.libvirt_xml(reconnects);
    if let Some((major, minor)) = libvirt.filter(|_| !reconnects) {
        page += &format!(
            "\n# This libvirt {major}.{minor} cannot let the disk wait while sheep restarts: the \
             guest would see\n# I/O errors. To avoid that, put this before </domain> instead of \
             the disk above\n{}",
            disk.libvirt_command_line_xml()
        );
    }
    page += &format!("\n# NBD URI, for nbdinfo, nbdcopy, qemu-img and others\n{}\n", disk.uri());
    print::text(&page)?;
    if let Some(note) = note {
        context.note(&note);
    }
    Ok(())
}

impl Disk<'_> {
    fn qemu_arguments(&self) -> Vec<String> {
        let node = &self.node;
        let escape = |value: &std::ffi::OsStr| foreign::escape(value).to_string_lossy().to_string();
        let mode =
            if self.read_only { "read-only=on" } else { "discard=unmap,detect-zeroes=unmap" };
        let blockdev = format!(
            "driver=nbd,node-name={node},server.type=unix,server.path={},export={},\
             reconnect-delay={},cache.direct=on,cache.no-flush=off,{mode}",
            escape(self.socket.as_os_str()),
            escape(self.name.as_ref()),
            self.reconnect_delay_s
        );
        // Nothing is written to a snapshot, so there is nothing to say about how.
        let writing = match self.read_only {
            true => "",
            false => "discard=on,write-zeroes=on,write-cache=on,werror=enospc,",
        };
        let device = format!("virtio-blk-pci,drive={node},id={node}-disk,{writing}rerror=report");
        vec!["-blockdev".to_string(), blockdev, "-device".to_string(), device]
    }

    fn libvirt_xml(&self, reconnects: bool) -> String {
        let reconnect = if reconnects {
            format!("\n    <reconnect delay='{}'/>", self.reconnect_delay_s)
        } else {
            String::new()
        };
        let writing = match self.read_only {
            true => "",
            false => "error_policy='enospace' discard='unmap' detect_zeroes='unmap' ",
        };
        let read_only = if self.read_only { "\n  <readonly/>" } else { "" };
        format!(
            "\
<disk type='network' device='disk'>
  <driver name='qemu' type='raw' cache='none' {writing}rerror_policy='report'/>
  <source protocol='nbd' name='{name}'>
    <host transport='unix' socket='{socket}'/>{reconnect}
  </source>
  <target dev='{target}' bus='virtio'/>{read_only}
</disk>
",
            name = xml_escape(self.name),
            socket = xml_escape(&self.socket.to_string_lossy()),
            target = xml_escape(self.target),
        )
    }

    /// The QEMU arguments as a part of a domain.
    fn libvirt_command_line_xml(&self) -> String {
        let mut xml = String::from(
            "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n",
        );
        for argument in self.qemu_arguments() {
            xml += &format!("  <qemu:arg value='{}'/>\n", xml_escape(&argument));
        }
        xml + "</qemu:commandline>\n"
    }

    fn uri(&self) -> String {
        let socket = self.socket.as_os_str().as_encoded_bytes();
        format!(
            "nbd+unix:///{}?socket={}",
            percent_encode(self.name.as_bytes()),
            percent_encode(socket)
        )
    }
}

/// Major and minor version of the libvirt of this machine, if there is one.
fn local_libvirt() -> Option<(u32, u32)> {
    let output = process::Command::new("virsh").arg("--version").output().ok()?;
    parse_version(&String::from_utf8(output.stdout).ok()?)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn xml_escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '\'' => escaped += "&apos;",
            '"' => escaped += "&quot;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// All but letters, digits and what is plain in a path.
fn percent_encode(bytes: &[u8]) -> String {
    let mut encoded = String::new();
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
            encoded.push(char::from(*byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

/// A word as a shell reads it back.
fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn disk<'a>(name: &'a str, socket: &'a str) -> Disk<'a> {
        Disk {
            name,
            node: "sheep-7".to_string(),
            read_only: false,
            socket: Path::new(socket),
            reconnect_delay_s: 60,
            target: "vda",
        }
    }

    fn snapshot<'a>(name: &'a str, socket: &'a str) -> Disk<'a> {
        Disk { node: "sheep-layer-9".to_string(), read_only: true, ..disk(name, socket) }
    }

    #[test]
    fn qemu_is_told_all_that_a_disk_needs() {
        let arguments = disk("disk1", "/var/lib/sheepdog/nbd.sock").qemu_arguments();
        assert_eq!(arguments[0], "-blockdev");
        assert_eq!(
            arguments[1],
            "driver=nbd,node-name=sheep-7,server.type=unix,\
             server.path=/var/lib/sheepdog/nbd.sock,export=disk1,reconnect-delay=60,\
             cache.direct=on,cache.no-flush=off,discard=unmap,detect-zeroes=unmap"
        );
        assert!(arguments[3].starts_with("virtio-blk-pci,drive=sheep-7,"), "{}", arguments[3]);
        assert!(arguments[3].contains(",werror=enospc,"), "{}", arguments[3]);
    }

    #[test]
    fn a_snapshot_is_attached_for_reading_only() {
        let disk = snapshot("disk1@monday", "/run/nbd.sock");
        let arguments = disk.qemu_arguments();
        assert_eq!(
            arguments[1],
            "driver=nbd,node-name=sheep-layer-9,server.type=unix,server.path=/run/nbd.sock,\
             export=disk1@monday,reconnect-delay=60,cache.direct=on,cache.no-flush=off,read-only=on"
        );
        let device = "virtio-blk-pci,drive=sheep-layer-9,id=sheep-layer-9-disk,rerror=report";
        assert_eq!(arguments[3], device);
        let xml = disk.libvirt_xml(true);
        assert!(xml.contains("<target dev='vda' bus='virtio'/>\n  <readonly/>\n</disk>"), "{xml}");
        assert!(!xml.contains("discard") && !xml.contains("enospace"), "{xml}");
        assert_eq!(disk.uri(), "nbd+unix:///disk1%40monday?socket=/run/nbd.sock");
    }

    #[test]
    fn strange_names_cannot_break_out() {
        let strange = disk("a,b'<&\">%$x", "/run/s p,q.sock");
        let blockdev = &strange.qemu_arguments()[1];
        assert!(blockdev.contains("export=a,,b'<&\">%$x,reconnect"), "{blockdev}");
        assert!(blockdev.contains("server.path=/run/s p,,q.sock,export"), "{blockdev}");
        let xml = strange.libvirt_xml(true);
        assert!(xml.contains("name='a,b&apos;&lt;&amp;&quot;&gt;%$x'"), "{xml}");
        let uri = "nbd+unix:///a%2Cb%27%3C%26%22%3E%25%24x?socket=/run/s%20p%2Cq.sock";
        assert_eq!(strange.uri(), uri);
        assert_eq!(shell_quote("it's"), r"'it'\''s'");
        assert_eq!(shell_quote("a=b,c"), "a=b,c");
    }

    #[test]
    fn old_libvirt_gets_xml_that_it_understands() {
        assert_eq!(parse_version("9.0.0\n"), Some((9, 0)));
        assert_eq!(parse_version("10.10.1"), Some((10, 10)));
        assert!(parse_version("10.0.0") >= Some(LIBVIRT_RECONNECTS));
        assert_eq!(parse_version("unknown"), None);
        let disk = disk("disk1", "/run/nbd.sock");
        assert!(disk.libvirt_xml(true).contains("    <reconnect delay='60'/>\n  </source>"));
        assert!(!disk.libvirt_xml(false).contains("reconnect"));
        assert!(disk.libvirt_command_line_xml().contains("reconnect-delay=60,"));
    }

    /// libvirt's own schema, where it is installed.
    #[test]
    fn libvirt_accepts_the_xml() {
        let Some(version) = local_libvirt() else {
            eprintln!("virsh is not installed: the XML was not checked here");
            return;
        };
        let disk = disk("a,b'<&", "/var/lib/sheepdog/nbd.sock");
        let check = |devices: &str, rest: &str| {
            let xml = format!(
                "<domain type='kvm'><name>a</name><memory>131072</memory><os><type arch='x86_64' \
                 machine='pc'>hvm</type></os><devices>{devices}</devices>{rest}</domain>"
            );
            let mut file = tempfile::NamedTempFile::new().expect("a scratch file");
            file.write_all(xml.as_bytes()).expect("a write");
            let validation =
                process::Command::new("virt-xml-validate").arg(file.path()).arg("domain").output();
            let validation = validation.expect("it comes with virsh");
            let said = String::from_utf8_lossy(&validation.stderr).to_string();
            assert!(validation.status.success(), "{said}\n{xml}");
        };
        check(&disk.libvirt_xml(version >= LIBVIRT_RECONNECTS), "");
        check("", &disk.libvirt_command_line_xml());
        let snapshot = snapshot("a@b", "/var/lib/sheepdog/nbd.sock");
        check(&snapshot.libvirt_xml(version >= LIBVIRT_RECONNECTS), "");
    }
}
