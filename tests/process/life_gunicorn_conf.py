"""For gunicorn with gevent and --preload: greenlets from the first moment on."""

from gevent import monkey

monkey.patch_all()
