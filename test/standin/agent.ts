/**
 * qrexec-agent's side of one call, a program of its own in Perl: neither Node nor a shell can make
 * what a genuine agent gives to a service, two socket pairs, nor shut one down for reading.
 *
 * What a service sees follows qrexec's libqrexec/exec.c and process_io.c:
 *
 * - stdin and stdout are sockets, stderr is a pipe. /dev/stdin cannot be opened.
 * - A service that closes its stdin early is not told on: what still comes for it is thrown away. So is
 *   what it writes when the caller has closed its own stdout.
 * - When the client is gone, both sockets are shut down, but stay open until the service has ended,
 *   and nobody ends it. Who writes then gets EPIPE; who waits in poll(2) for room in a socket that
 *   was full is never woken.
 * - The exit code is told when the service has ended, and its stdout and stderr too, which what it
 *   started in the background may hold open.
 *
 * Arguments: where stderr is kept; bytes of stdin after which to kill the client, or -1; the client;
 * user and group, or -1; 1 for the sockets to be closed when the client is gone; the service. Says to
 * descriptor 3 `pid N`, waits there for a byte before the service runs, and says `code N` when it has
 * ended. The end of descriptor 3 is the end of the client.
 */
export const AGENT = String.raw`
use strict;
use POSIX ();
my ($log, $limit, $client, $uid, $gid, $closes, @words) = @ARGV;
open(my $vchan, "+<&=", 3) or exit 125;
socketpair(my $in, my $its_in, 1, 1, 0) or exit 125;
socketpair(my $out, my $its_out, 1, 1, 0) or exit 125;
pipe(my $err, my $its_err) or exit 125;
pipe(my $woken, my $wake) or exit 125;
$SIG{CHLD} = sub { syswrite($wake, "x") };

sub child {
  my ($body) = @_;
  my $pid = fork;
  exit 125 unless defined $pid;
  return $pid if $pid;
  $SIG{CHLD} = "DEFAULT";
  $body->();
  POSIX::_exit(125);
}

pipe(my $go, my $begin) or exit 125;
my $service = child(sub {
  close $begin;
  sysread($go, my $word, 1) or POSIX::_exit(125);
  POSIX::dup2(fileno($its_in), 0);
  POSIX::dup2(fileno($its_out), 1);
  POSIX::dup2(fileno($its_err), 2);
  POSIX::setsid();
  if ($uid >= 0) {
    $( = $gid;
    $) = "$gid $gid";
    POSIX::setuid($uid);
  }
  exec { $words[0] } @words;
});
close $_ for ($its_in, $its_out, $its_err);
close $go;
syswrite($vchan, "pid $service\n");
# Nothing runs that nobody has noted.
sysread($vchan, my $noted, 1) or exit 125;
syswrite($begin, "x");
close $begin;

sub pump {
  my ($from, $to, $kept, $limit) = @_;
  return child(sub {
    $SIG{PIPE} = "IGNORE";
    close $vchan;
    my $data;
    while ($limit) {
      my $read = sysread($from, $data, 65536);
      if (!defined $read) {
        next if $!{EINTR};
        last unless $!{EAGAIN};
        select(undef, undef, undef, 0.01);
        next;
      }
      last unless $read;
      $data = substr($data, 0, $limit) if $limit > 0 && $limit < $read;
      syswrite($kept, $data) if defined $kept;
      for (my $at = 0; defined $to && $at < length $data;) {
        my $written = syswrite($to, $data, length($data) - $at, $at);
        if (defined $written) { $at += $written }
        elsif ($!{EAGAIN}) { select(undef, undef, undef, 0.01) }
        elsif (!$!{EINTR}) { $to = undef }
      }
      $limit -= length $data if $limit > 0;
    }
    if (!$limit) {
      # What was read has arrived, then the client is gone.
      kill "KILL", $client;
      sleep 1 while 1;
    }
    POSIX::_exit(0);
  });
}
open(my $kept, ">>", $log);
my %pump = (
  in => pump(\*STDIN, $in, undef, $limit),
  out => pump($out, \*STDOUT, undef, -1),
  err => pump($err, \*STDERR, $kept, -1),
);
POSIX::close($_) for 0, 1, 2;
$SIG{PIPE} = "IGNORE";

my $code;
for (;;) {
  while ((my $pid = waitpid(-1, 1)) > 0) {
    if ($pid == $service) {
      $code = $? & 127 ? 128 + ($? & 127) : $? >> 8;
      kill "KILL", $pump{in} if $pump{in};
    }
    for my $name (grep { ($pump{$_} || 0) == $pid } keys %pump) {
      delete $pump{$name};
      shutdown($in, 1) if $name eq "in";
    }
  }
  if (defined $code && !$pump{out} && !$pump{err}) {
    syswrite($vchan, "code $code\n");
    exit 0;
  }
  my $ready = "";
  vec($ready, fileno($_), 1) = 1 for $vchan, $woken;
  next if select($ready, undef, undef, undef) < 0;
  sysread($woken, my $bytes, 4096) if vec($ready, fileno($woken), 1);
  last if vec($ready, fileno($vchan), 1) && !sysread($vchan, my $nothing, 1);
}
kill "KILL", values %pump;
waitpid($_, 0) for values %pump;
if ($closes) { close $in; close $out }
else { shutdown($in, 1); shutdown($out, 0) }
close $err;
waitpid($service, 0) unless defined $code;
`;
