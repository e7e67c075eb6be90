# Runs inside new namespaces, as their root: a file system of read-only system folders and a small /tmp, no network, no other processes,
# bounded memory, time and files. The program comes on standard input; that it ran to its end is said by the token on the last line.
# Arguments: an empty folder, the Python interpreter, its folder, the token, seconds of the processor, seconds of the clock, bytes of memory.
set -e
root=$1 python=$2 prefix=$3 token=$4 seconds=$5 wait=$6 memory=$7
mount -t tmpfs -o size=1m,mode=755 none "$root"
mkdir "$root/tmp" "$root/dev"
for file in null urandom; do
  : > "$root/dev/$file"
  mount --bind "/dev/$file" "$root/dev/$file"
done
for dir in /usr /bin /sbin /lib /lib32 /lib64 /libx32 "$prefix"; do
  if [ -e "$root$dir" ]; then
    :
  elif [ -L "$dir" ]; then
    cp -P "$dir" "$root$dir"
  elif [ -d "$dir" ]; then
    mkdir -p "$root$dir"
    mount --bind "$dir" "$root$dir"
    mount -o remount,bind,ro,nosuid,nodev "$root$dir"
  fi
done
mount -o remount,ro,size=1m "$root"
mount -t tmpfs -o size=16m none "$root/tmp"
cd /
exec chroot "$root" /usr/bin/env -i -C /tmp PATH=/usr/bin:/bin HOME=/tmp \
  prlimit --as="$memory" --cpu="$seconds" --fsize=1048576 --core=0 timeout -s KILL "$wait" "$python" -I -c '
import io, sys
token, out = sys.argv.pop(), sys.stdout
sys.stdout = sys.stderr = io.StringIO()
exec(sys.stdin.read(), {"__name__": "__main__"})
out.write(token)' "$token"
