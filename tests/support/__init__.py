"""What several tests share: finished runs, commands in forked processes, images, small networks."""
